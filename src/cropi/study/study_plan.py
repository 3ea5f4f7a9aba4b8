"""What a study trains: one ordinary run for each strategy and seed, with a config of its own.

    out/NAME-study/
      study.yaml  results.parquet  study.json  report.html
      shared/seed-S/            prompts, start policy and rollouts, which a seed's runs share
      cells/STRATEGY/seed-S/    a run directory

Seeds differ in sampling, data order and training; prompts and start policy are the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropi.config import RunConfig, with_settings
from cropi.errors import InputError
from cropi.plugins import is_built_in, plugin_names, slug, unknown_name
from cropi.selection import find_strategy
from cropi.selection.settings import StrategyChoice
from cropi.text import remote_url

PAPER: dict[str, Any] = {
    "selection.strategy": {
        "name": "ranking",
        "fusion_constant": 0.0,
        "noise_floor": 0.0,
        "memory": 0.0,
    },
    "curriculum.refresh": "never",
    "influence.target": "mean",
    "influence.precondition": "none",
    "training.dynamic_sampling": False,
}
"""The recipe of arXiv 2510.26491; ratio, stages, objective and parameters stay the config's."""

BUILTIN_VARIANTS = {"paper": PAPER}
STUDY_FILE = "study.yaml"
"""In a study's directory: the config, with the strategies and seeds that were compared."""
SHARED_FOLDER = "shared"
"""In a study's directory: what the runs of each seed share."""
RESERVED_KEYS = ("name", "out", "seed", "data_seed", "baselines", "compare", "scale")


@dataclass(frozen=True)
class StudyRun:
    """One strategy with one seed; `label` is the name of a strategy or of a variant."""

    label: str
    seed: int
    config: RunConfig

    @property
    def title(self) -> str:
        """Display name."""
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """The base config, what is compared, and with which seeds; `labels` include `baseline`."""

    config: RunConfig
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str

    @classmethod
    def of(
        cls, config: RunConfig, labels: list[str] | None = None, seeds: list[int] | None = None
    ) -> StudyPlan:
        """The plan of the config's `compare` section, with other labels and seeds if given.

        The baseline is added where it is not named: without it there is nothing to compare with.
        Raises InputError for a label that is neither a strategy nor a variant.
        """
        if url := remote_url(config.out):
            raise InputError(
                f"out = {url}: a study is kept on this machine alone; give a local folder, such as "
                f"out=runs, and copy runs/{config.name}-study when it has ended, or keep single "
                "runs there: `cropi run CONFIG selection.strategy=NAME seed=N`"
            )
        wanted = list(labels or _labels(config.compare.strategies or config.strategies))
        seeds = list(config.compare.seeds if seeds is None else seeds)
        if config.compare.baseline not in wanted:
            wanted.insert(0, config.compare.baseline)
        for name, values in (("strategies", wanted), ("seeds", seeds)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"compare {name} {values}: name at least one, and each once")
        folders = [slug(label) for label in wanted]
        if len(set(folders)) < len(folders):
            raise InputError(f"compare strategies {wanted}: two share a folder; rename a variant")
        plan = cls(config, tuple(wanted), tuple(seeds), config.compare.baseline)
        for run in plan.runs():  # wrong names and settings are reported before any work
            find_strategy(run.config.selection.strategy)
        return plan

    @property
    def root(self) -> Path:
        """The study's directory."""
        return Path(self.config.out).expanduser() / f"{self.config.name}-study"

    def runs(self) -> list[StudyRun]:
        """Every run, seed by seed: a study that is stopped has whole comparisons."""
        return [
            StudyRun(label, seed, self._run_config(label, seed))
            for seed in self.seeds
            for label in self.labels
        ]

    def shared(self, seed: int) -> RunConfig:
        """The run that makes what the runs of a seed share."""
        return self._config("study", self.root / SHARED_FOLDER, seed, {})

    def as_config(self, threads: int | None = None) -> RunConfig:
        """The base config, with what is compared, and with how many threads, under `compare`."""
        compare = self.config.compare
        chosen = {c.name: c for c in compare.strategies if isinstance(c, StrategyChoice)}
        compared = {
            "strategies": [chosen.get(label, label) for label in self.labels],
            "seeds": list(self.seeds),
            "threads": threads or compare.threads,
        }
        compare = compare.model_copy(update=compared)
        return self.config.model_copy(update={"compare": compare})

    def _run_config(self, label: str, seed: int) -> RunConfig:
        settings = self.settings(label)
        return self._config(label, self.root / "cells" / slug(label), seed, settings)

    def settings(self, label: str) -> dict[str, Any]:
        """The dotted settings that a strategy or variant changes in the base config."""
        variants = {**BUILTIN_VARIANTS, **self.config.compare.variants}
        if label in variants:
            return _variant(label, variants[label])
        for choice in _choices(self.config):
            if choice.name == label:
                return {"selection.strategy": choice.model_dump(mode="json")}
        if ":" not in label and not is_built_in("strategy", label):
            names = {*plugin_names("strategy"), *variants}
            raise InputError(
                "compare: "
                + unknown_name("strategy", label, names, ", or a variant under compare.variants")
            )
        return {"selection.strategy": label}

    def _config(self, label: str, out: Path, seed: int, settings: dict[str, Any]) -> RunConfig:
        config = self.config
        data_seed = config.seed if config.data_seed is None else config.data_seed
        place = {"name": f"seed-{seed}", "out": str(out), "seed": seed, "data_seed": data_seed}
        # What is placed elsewhere is whole runs.
        plain = config.model_copy(
            update={"compare": type(config.compare)(), "scale": type(config.scale)()}
        )
        # Otherwise a study would keep one checkpoint per stage and run.
        given = "keep_checkpoints" in config.curriculum.model_fields_set
        keep = config.curriculum.keep_checkpoints if given else "last"
        changes = {"baselines": [], "curriculum.keep_checkpoints": keep, **settings, **place}
        return with_settings(plain, changes, f"of {label}")


def _labels(strategies: Sequence[str | StrategyChoice]) -> list[str]:
    """What strategies and variants are called in a study."""
    return [s.name if isinstance(s, StrategyChoice) else s for s in strategies]


def _choices(config: RunConfig) -> list[StrategyChoice]:
    """The strategies that the config gives settings for, those to be compared first."""
    compared = [s for s in config.compare.strategies if isinstance(s, StrategyChoice)]
    return [*compared, *config.strategies]


def _variant(label: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A variant's settings. Raises InputError for one that is decided by the study."""
    for key in settings:
        if key.split(".")[0] in RESERVED_KEYS:
            raise InputError(
                f"compare.variants.{label}: {key} is decided by the study; set it for the whole "
                "config, or give --seeds"
            )
    return dict(settings)


def holds_shared(folder: Path) -> bool:
    """Whether a folder of a study holds what the runs of a seed share, which is no run itself."""
    parent = folder.absolute().parent
    return parent.name == SHARED_FOLDER and (parent.parent / STUDY_FILE).is_file()
