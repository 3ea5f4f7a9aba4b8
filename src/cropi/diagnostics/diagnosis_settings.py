"""Settings of the diagnoses, with their defaults. Importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from cropi.diagnostics.fidelity import Budget, SketchSpec
from cropi.errors import InputError
from cropi.gradients.settings import ObjectiveConfig
from cropi.plugins import find_plugin, plugin_names, settings_of
from cropi.sketches.settings import SketchChoice

LEARNING_RATES = (1e-12, 1.0)
"""Shortest and longest step: below, float32 weights do not move; above, nothing is left of them."""


@dataclass(frozen=True)
class StepSettings:
    """How many steps to take, and how long they are.

    A band is `band_size` prompts whose mean gradient makes one step. `random_bands` are drawn
    beside those of the most, middling and least influential prompts, and `single_prompts` steps
    follow one prompt alone.
    """

    learning_rates: tuple[float, ...] = (1e-6, 1e-5, 1e-4)
    band_size: int = 64
    random_bands: int = 8
    single_prompts: int = 30
    seed: int = 0
    batch_tokens: int | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        low, high = LEARNING_RATES
        if not self.learning_rates or not all(low <= r <= high for r in self.learning_rates):
            raise InputError(
                f"learning rates {list(self.learning_rates)} must all be above 0, from {low:g} to "
                f"{high:g}, e.g. 1e-5"
            )
        if self.band_size < 1:
            raise InputError(f"band_size {self.band_size} is too small; give at least 1 prompt")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates, ascending."""
        return tuple(sorted(set(self.learning_rates)))

    @property
    def main(self) -> float:
        """The middle learning rate, at which single prompts are tried."""
        return self.rates[len(self.rates) // 2]


@dataclass(frozen=True)
class LeaveOutSettings:
    """How long to train, how much to leave out, and how often.

    A block is the `share` of the scored prompts: each validation set's most and least influential
    ones, and `random_blocks` drawn. Training on the whole pool is made `repeats` times.
    """

    steps: int = 200
    share: float = 0.25
    random_blocks: int = 8
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 / 3:
            raise InputError(f"share {self.share} is not in (0, 1/3]; give e.g. 0.25")
        least = {"steps": 1, "random_blocks": 0, "repeats": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} {getattr(self, name)} is too few; give {low} or more")


def all_sketches() -> tuple[str, ...]:
    """The names of the built-in sketches; exact influence is what they are compared with."""
    return tuple(name for name in plugin_names("sketch") if name != SketchChoice.default)


@dataclass(frozen=True)
class FidelitySettings:
    """Which sketches, how many seeds and prompts, and how cost is measured.

    `sketches` are names of sketches; `sparse:gaussian` also names a projection. At most
    `max_prompts` informative prompts of the pool are compared, and `timed_prompts` of them timed;
    `top` is the k of precision@k, as a share of the prompts.
    """

    sketches: tuple[str, ...] = field(default_factory=all_sketches)
    dims: tuple[int, ...] = (2048, 8192, 32768)
    ratios: tuple[float, ...] = (1.0, 0.15, 0.05, 0.01)
    seeds: int = 5
    max_prompts: int = 800
    timed_prompts: int = 64
    repetitions: int = 3
    top: float = 0.1
    seed: int = 0
    batch_tokens: int | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    budget: Budget = field(default_factory=Budget)

    def specs(self) -> list[SketchSpec]:
        """Every kind of sketch to measure. Raises InputError if there is none, or a bad number."""
        if not 0 < self.top <= 1:
            raise InputError(f"top {self.top} is not in (0, 1]; give a share of the prompts")
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise InputError(f"ratio {ratio} is not in (0, 1]; give shares, e.g. 1,0.15,0.01")
        specs = [
            SketchSpec(name, dim, ratio)
            for name in self.sketches
            for ratio in self._ratios(name.partition(":")[0])
            for dim in self.dims
        ]
        if not specs or self.seeds < 1:
            raise InputError("no sketch to measure; give sketches, dims and at least one seed")
        return specs

    def _ratios(self, name: str) -> tuple[float | None, ...]:
        """The ratios worth trying with a sketch; factorised with all coordinates is windowed."""
        if "ratio" not in settings_of(find_plugin("sketch", name)).model_fields:
            return (None,)
        return tuple(ratio for ratio in self.ratios if ratio < 1 or name != "factorised")
