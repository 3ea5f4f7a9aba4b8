"""Takes the real steps: gradients of bands, weights moved, objectives read, weights restored.

All in fp32: a step of 1e-6 per weight is lost in bf16's rounding. The weights are the same bits
afterwards, whatever happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cropi.diagnostics.diagnosis_settings import StepSettings
from cropi.diagnostics.step import (
    StepOutcome,
    StepPlan,
    StepReport,
    TargetSteps,
    plan_steps,
    require_scored,
)
from cropi.errors import InputError
from cropi.estimation.intervals import mean_interval
from cropi.gradients.consumers import SumConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.forward import in_float32
from cropi.gradients.logprobs import LogprobReader, read_objectives
from cropi.influence.left_out_prompts import require_informative
from cropi.influence.scorer import Scorer
from cropi.progress import PhaseProgress
from cropi.schema import InfluenceEstimate, RolloutGroup, longest_allowed

GRADIENT_BYTES = 1 << 31
"""Most bytes of bands' gradients held at once, unless one band needs more."""
BLOCK = 1 << 20

Vector = dict[str, Tensor]
"""A direction in weight space: flat fp32 tensors by parameter."""


def measure_steps(
    model: nn.Module,
    pool: Sequence[RolloutGroup],
    validation: Mapping[str, Sequence[RolloutGroup]],
    scores: InfluenceEstimate | None,
    settings: StepSettings,
    progress: PhaseProgress | None = None,
) -> StepReport:
    """Step on every band and read the validation objectives before and after.

    Raises InputError if scores and pool do not fit each other, a set has no informative prompt,
    or the model cannot be computed in fp32.
    """
    with in_float32(model) as is_float32:
        if not is_float32:
            raise InputError(
                "a real step needs weights in fp32, and this model is quantised or too large for "
                "that; give a smaller checkpoint or adapters on one"
            )
        experiment = StepExperiment(
            model, pool, validation, settings, progress or (lambda *_: None)
        )
        return experiment.run(scores)


class StepExperiment:
    """One policy's steps; holds gbar_V of each set and its objective before any step."""

    def __init__(
        self,
        model: nn.Module,
        pool: Sequence[RolloutGroup],
        validation: Mapping[str, Sequence[RolloutGroup]],
        settings: StepSettings,
        progress: PhaseProgress,
    ) -> None:
        self.settings, self.progress = settings, progress
        self.objective = settings.objective.with_length(longest_allowed(pool))
        self.extractor = GradientExtractor(model, self.objective, settings.batch_tokens)
        self.reader = LogprobReader(model, settings.batch_tokens)
        informative = require_informative("the pool", pool, self.objective).groups
        self.pool = {group.prompt_id: group for group in informative}
        self.validation = {
            n: require_informative(f"validation set {n}", groups, self.objective).groups
            for n, groups in validation.items()
        }
        self.size = sum(p.numel() for p in self.extractor.parameters.values())
        self._require_in_range()

    def _require_in_range(self) -> None:
        """Raise InputError naming a validation prompt whose objective cannot be computed."""
        for name, groups in self.validation.items():
            bad = np.flatnonzero(~np.isfinite(self._objectives(name)))
            if len(bad):
                raise InputError(
                    f"validation set {name}: the objective of {len(bad)} of {len(groups)} prompts, "
                    f"first {groups[bad[0]].prompt_id}, is out of range under this policy; check "
                    "their log-probs and rewards, or leave them out"
                )

    def run(self, scores: InfluenceEstimate | None) -> StepReport:
        """Plan the bands, step on each, report."""
        settings, names = self.settings, list(self.validation)
        notes: list[str] = []
        if scores is None:
            influence = Scorer(self.extractor, progress=self.progress).score(
                list(self.pool.values()), self.validation
            )
            scores, notes = influence.estimate, influence.notes
        scores = scores.scored()
        require_scored(scores, self.pool, names)
        plans = plan_steps(
            scores,
            names,
            settings.band_size,
            settings.random_bands,
            settings.single_prompts,
            settings.seed,
        )
        size = len(plans[0].members)
        outcomes = self._outcomes([self.pool[i] for i in scores.prompt_ids], plans)
        targets = [
            TargetSteps(
                name, len(groups), float(self.before[name].mean()), self.norms[name], outcomes[name]
            )
            for name, groups in self.validation.items()
        ]
        if size < settings.band_size:
            few = f"bands hold {size} prompts instead of {settings.band_size}"
            notes = [*notes, f"{few}: {len(self.pool)} scored"]
        return StepReport(targets, settings.rates, settings.main, size, self.size, notes)

    def _outcomes(
        self, groups: Sequence[RolloutGroup], plans: Sequence[StepPlan]
    ) -> dict[str, list[StepOutcome]]:
        """Every step's effects, by validation set."""
        directions = {
            name: mean_gradients(self.extractor, groups, [np.arange(len(groups))])[0]
            for name, groups in self.validation.items()
        }
        self.norms = {name: norm(direction) for name, direction in directions.items()}
        self.before = {name: self._objectives(name) for name in directions}
        outcomes: dict[str, list[StepOutcome]] = {name: [] for name in directions}
        at_once = max(1, GRADIENT_BYTES // (4 * self.size))
        for start in range(0, len(plans), at_once):
            part = plans[start : start + at_once]
            gradients = mean_gradients(self.extractor, groups, [p.members for p in part])
            for n, (plan, gradient) in enumerate(zip(part, gradients, strict=True)):
                for name in self._watching(plan):
                    outcomes[name] += self._steps(plan, gradient, name, directions[name])
                self.progress("steps", start + n + 1, len(plans))
        return outcomes

    def _watching(self, plan: StepPlan) -> list[str]:
        """The sets on which a band's effect is read."""
        return list(self.validation) if plan.target is None else [plan.target]

    def _steps(
        self, plan: StepPlan, gradient: Vector, name: str, direction: Vector
    ) -> Iterator[StepOutcome]:
        length = norm(gradient)
        if length == 0:
            return
        slope = inner(direction, gradient) / length
        rates = (self.settings.main,) if plan.band == "single" else self.settings.rates
        for rate in rates:
            eta = rate * math.sqrt(self.size)
            with perturbed(self.extractor.parameters, gradient, eta / length):
                change = self._objectives(name) - self.before[name]
            yield StepOutcome(
                plan.band,
                rate,
                len(plan.members),
                slope / self.norms[name] if self.norms[name] else math.nan,
                eta * slope,
                float(change.mean()),
                mean_interval(change),
            )

    def _objectives(self, name: str) -> np.ndarray:
        return read_objectives(self.reader, self.validation[name], self.objective)


def mean_gradients(
    extractor: GradientExtractor,
    groups: Sequence[RolloutGroup],
    bands: Sequence[np.ndarray],
    advance: Callable[[int], None] | None = None,
) -> list[Vector]:
    """The mean gradient of each band of places in `groups`; a prompt in several costs once."""
    members = np.unique(np.concatenate(bands))
    weights_BP = np.zeros((len(bands), len(members)))
    for row, band in zip(weights_BP, bands, strict=True):
        row[np.searchsorted(members, band)] = 1 / len(band)
    consumer = SumConsumer(extractor.shapes, weights_BP, extractor.device)
    extractor.run([groups[m] for m in members], [consumer], advance)
    sums = consumer.sums.values.items()
    return [{name: sums_BRI[b].flatten() for name, sums_BRI in sums} for b in range(len(bands))]


def inner(a: Vector, b: Vector) -> float:
    """Inner product, float64 throughout, a block at a time."""
    total = 0.0
    for name in a:
        pieces = zip(torch.split(a[name], BLOCK), torch.split(b[name], BLOCK), strict=True)
        total += sum(float(x.double() @ y.double()) for x, y in pieces)
    return total


def norm(a: Vector) -> float:
    """L2 norm."""
    return math.sqrt(inner(a, a))


@contextmanager
def perturbed(
    parameters: Mapping[str, nn.Parameter], direction: Vector, scale: float
) -> Iterator[None]:
    """Add `scale` times a direction to the weights inside the block; the same bits come back."""
    saved = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(direction[name].view_as(parameter), alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
