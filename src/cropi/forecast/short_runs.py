"""Measuring before a run: a probe of this machine's speed, and a pilot of the policy's responses.

Both are ordinary runs of the same settings on few prompts, in the user's cache directory, so that
they measure what will be done; one that was killed continues. What they measured is kept in a small
file, and the runs are deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cropi import __version__
from cropi.config import RunConfig, with_settings
from cropi.curriculum.loop import open_curriculum, run
from cropi.curriculum.run_context import needs_of_arm
from cropi.errors import InputError
from cropi.forecast.hardware import Hardware
from cropi.forecast.observation import LinearCost, behaviour_of, linear_costs, observe
from cropi.forecast.prompt_counts import PromptCounts
from cropi.forecast.workload import Behaviour, SampledSet
from cropi.policy.checkpoint_source import locate
from cropi.progress import ProgressReporter
from cropi.schema import fingerprint
from cropi.selection.settings import StrategyChoice
from cropi.store.files import write_json
from cropi.store.remote import cache_directory

PILOT_PROMPTS = 200
PROBE_PROMPTS = (48, 144)
"""Prompts of every set in the two runs of a probe."""
PROBE_STEPS = (2, 8)
"""Optimizer steps of the two runs of a probe, and of their warm-ups."""
PILOT_SETTINGS = (
    "seed",
    "data_seed",
    "model",
    "prompts",
    "verifiers",
    "warmup",
    "rollouts",
    "training",
    "evaluation",
)
"""Settings that decide what the start policy answers: a pilot is good for all configs of these."""


@dataclass(frozen=True)
class ShortRuns:
    """Makes the short runs of a config, or reads what earlier ones of the same have measured.

    `base` is the config's folder; `hardware` and the prompts' content are part of what is the same.
    """

    config: RunConfig
    counts: PromptCounts
    hardware: Hardware
    base: Path | None = None
    reporter: ProgressReporter | None = None

    def probe(self, guess: Behaviour) -> tuple[dict[str, LinearCost], Behaviour]:
        """The speed of every phase here, and how the untrained policy answers.

        Raises InputError for whatever a run of the config would refuse.
        """
        sizes = list(zip(("small", "large"), PROBE_PROMPTS, PROBE_STEPS, strict=True))
        configs = {name: self._probe_config(name, n, steps) for name, n, steps in sizes}

        def measure(root: Path) -> dict[str, Any]:
            folders = {
                name: run(self._in(root, each), self.base, self.reporter)
                for name, each in configs.items()
            }
            seconds = linear_costs(*(observe(folder) for folder in folders.values()))
            return {
                "lines": {phase: asdict(cost) for phase, cost in seconds.items()},
                "behaviour": asdict(behaviour_of(folders["large"], "probe", guess)),
            }

        machine = (asdict(self.hardware), os.environ.get("OMP_NUM_THREADS", ""))
        settings = configs["large"].model_dump(mode="json")
        values = self._measured("probe", (settings, machine), measure)
        fitted = {phase: LinearCost(**cost) for phase, cost in values["lines"].items()}
        return fitted, behaviour_from(values["behaviour"])

    def pilot(self, guess: Behaviour) -> Behaviour:
        """How the start policy answers PILOT_PROMPTS prompts of the pool, warmed up as in the run.

        Raises InputError for whatever a run of the config would refuse.
        """
        # One that has all of the pool rolled out, and the validation sets if there are any.
        whole = "ranking" if self.config.prompts.validation else "pass_rate"
        config = self._short("pilot", PILOT_PROMPTS, {"selection.strategy": whole})

        def measure(root: Path) -> dict[str, Any]:
            placed = self._in(root, config)
            with open_curriculum(placed, self.base, self.reporter):
                return asdict(behaviour_of(placed.directory, "pilot", guess))

        settings = config.model_dump(mode="json", include=set(PILOT_SETTINGS))
        return behaviour_from(self._measured("pilot", settings, measure))

    def _probe_config(self, name: str, prompts: int, steps: int) -> RunConfig:
        changes: dict[str, Any] = {
            "curriculum.stages": 1,
            "curriculum.steps_per_stage": steps,
            "curriculum.refresh": "never",
            "selection.strategy": _scoring_strategy(self.config).model_dump(mode="json"),
        }
        if self.config.warmup.steps:
            changes["warmup.steps"] = min(steps, self.config.warmup.steps)
        return self._short(name, prompts, changes)

    def _short(self, name: str, prompts: int, changes: Mapping[str, Any]) -> RunConfig:
        shared = {
            "name": name,
            "prompts.limit": min(prompts, self.config.prompts.limit or prompts),
            "baselines": [],
            "report_to": [],
            "curriculum.keep_checkpoints": "last",
            "compare": {},
        }
        return with_settings(self.config, {**shared, **changes}, f"of the {name} run")

    def _in(self, root: Path, config: RunConfig) -> RunConfig:
        return config.model_copy(update={"out": str(root)})

    def _measured(
        self, kind: str, inputs: Any, measure: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `measure` returns of a fresh folder, or what it returned for the same before."""
        key = fingerprint(inputs, self.counts.content, _files(self.config), __version__)
        place = cache_directory("plan") / kind / key[:16]
        result = place.with_suffix(".json")
        if (values := _read(result)) is not None:
            return values
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{place} cannot be written ({error.strerror}), and the {kind} needs it; set "
                "XDG_CACHE_HOME to a folder that can"
            ) from error
        values = measure(place)
        write_json(result, values)
        shutil.rmtree(place, ignore_errors=True)
        return values


def behaviour_from(values: Mapping[str, Any]) -> Behaviour:
    """A behaviour from the JSON that it was stored as."""
    sets = {name: SampledSet(**values[name]) for name in ("pool", "validation")}
    return Behaviour(**{**values, **sets})


def _scoring_strategy(config: RunConfig) -> StrategyChoice:
    """The strategy, or the first baseline that scores where it does not."""
    scoring = [s for s in config.strategies if needs_of_arm(config, s).scoring != "never"]
    return scoring[0] if scoring else config.selection.strategy


def _files(config: RunConfig) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a local model's files; another model there is another policy."""
    source = locate(config.model.path, config.model.revision)
    if source.hub:
        return []
    files = [file for file in sorted(Path(source.location).iterdir()) if file.is_file()]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read(result: Path) -> dict[str, Any] | None:
    """What was measured before; None where there is nothing, or it is damaged."""
    try:
        values = json.loads(result.read_text(encoding="utf-8"))
        behaviour_from(values.get("behaviour", values))
        return dict(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
