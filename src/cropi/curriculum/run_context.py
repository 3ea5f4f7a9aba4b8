"""Opening a run: checks its settings, claims its directory, and makes its seeds and its log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cropi.config import (
    RunConfig,
    affects_results,
    check_files,
    to_yaml,
)
from cropi.curriculum.trackers import Trackers, require_trackers
from cropi.errors import InputError
from cropi.plugin_calls import PluginError
from cropi.progress import Bar, ProgressReporter
from cropi.schema import Prompt, derive_seed, fingerprint
from cropi.selection import Needs, find_strategy, needs_of
from cropi.selection.settings import StrategyChoice
from cropi.settings import flat
from cropi.store.files import atomic_write, read_partial_jsonl, write_jsonl
from cropi.store.run_directory import RunDirectory, Stage
from cropi.store.tables import require_set_names
from cropi.training import StagePlan, find_trainer


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run's components; `data` is that of prompts and warm-up, if it has its own.

    Compared runs can share prompts and warm-up while everything else is drawn differently.
    """

    run: int
    data: int | None = None

    def of(self, *component: str | int) -> int:
        """Return the seed of one component."""
        of_data = self.data is not None and component[0] in ("prompts", "warmup")
        return derive_seed(self.data if self.data is not None and of_data else self.run, *component)

    def by_name(self, config: RunConfig) -> dict[str, int]:
        """Return the run's seed and those of all components, by the path they are derived with."""
        stages = range(config.curriculum.stages)
        arms = [strategy.slug for strategy in config.strategies]
        components: list[tuple[str | int, ...]] = [
            *(("prompts",), ("warmup",), ("warmup", "prompts"), ("sketch",), ("order",)),
            ("evaluation",),
            ("rollouts", "pool", ""),
            ("rollouts", "sample"),
            *(("rollouts", "validation", name) for name in config.prompts.validation),
            *(("training", stage) for stage in stages),
            *(("selection", arm, stage) for arm in arms for stage in stages),
        ]
        return {"run": self.run, **{"/".join(map(str, c)): self.of(*c) for c in components}}


@dataclass(frozen=True)
class RunLog:
    """Where a run reports what it does: to the user, its wall times to timings.jsonl, and its
    metrics to the services that the settings name."""

    directory: RunDirectory
    reporter: ProgressReporter
    trackers: Trackers = field(default_factory=Trackers)

    @classmethod
    def of(cls, config: RunConfig, directory: RunDirectory, reporter: ProgressReporter) -> RunLog:
        """The log of a run with these settings."""
        names = tuple(dict.fromkeys(config.report_to))
        return cls(directory, reporter, Trackers(names, directory.root, config.name, reporter))

    @contextmanager
    def phase(
        self,
        title: str,
        phase: str,
        stage: Stage | None = None,
        total: int | None = None,
        **shared: Any,
    ) -> Iterator[Bar]:
        """Show and time a phase, of a stage or shared by all arms."""
        arm, index = (stage.arm, stage.index) if stage else ("", None)
        with (
            self.directory.timed(phase, arm, index, **shared),
            self.reporter.phase(title, total) as bar,
        ):
            yield bar

    def warn(self, lines: Sequence[str]) -> None:
        """Show warnings, one per line."""
        for line in lines:
            self.reporter.warn(line)


def check_settings(config: RunConfig, base: Path | None, reporter: ProgressReporter) -> None:
    """Find every plug-in and try the trainer's settings, before any work is done.

    Raises InputError for a file, strategy, engine or training setting that cannot be used.
    """
    with reporter.phase("settings"):
        check_files(config, base)
        require_trackers(config.report_to)
        require_set_names(config.prompts.validation)
        needs = [needs_of_arm(config, strategy) for strategy in config.strategies]
        warnings = check_trainer(config)
    scored = any(each.scoring != "never" for each in needs)
    for line in [*config.remarks, *(warnings if scored else ())]:
        reporter.warn(line)


def check_trainer(config: RunConfig) -> list[str]:
    """Try the trainer's settings on the first stage; return its warnings.

    Raises InputError if it refuses them, or is not a trainer.
    """
    return find_trainer(config.training.engine).check(first_stage(config))


def first_stage(config: RunConfig, pool: Sequence[Prompt] = ()) -> StagePlan:
    """The plan of a run's first stage, before anything is selected from the pool."""
    needs = [needs_of_arm(config, strategy) for strategy in config.strategies]
    return StagePlan(
        start=config.model.path,
        prompts=pool,
        steps=config.curriculum.steps_per_stage,
        first_step=0,
        horizon=config.curriculum.steps,
        seed=0,
        model=config.model,
        training=config.training,
        rollouts=config.rollouts,
        template_kwargs=config.prompts.chat_template_kwargs,
        evaluate_every=config.evaluation.every,
        normalisation=config.influence.objective.normalisation,
        dynamic_sampling=any(each.dynamic_sampling for each in needs),
    )


def needs_of_arm(config: RunConfig, strategy: StrategyChoice) -> Needs:
    """Return what a strategy needs; the config may ask for dynamic sampling with any of them."""
    needs = needs_of(find_strategy(strategy))
    dynamic = needs.dynamic_sampling or config.training.dynamic_sampling
    return replace(needs, dynamic_sampling=dynamic)


def arms_needing(configs: Sequence[RunConfig], kind: str) -> list[str]:
    """The arms of some runs that use, and pay for, shared rollouts of a kind: of the whole pool, or
    of the validation sets."""
    needed = {
        strategy.slug: needs_of_arm(config, strategy)
        for config in configs
        for strategy in config.strategies
    }
    return [
        arm
        for arm, needs in needed.items()
        if (needs.validation if kind == "validation" else needs.whole_pool)
    ]


def open_directory(config: RunConfig) -> RunDirectory:
    """Begin a run in its folder, or continue one with the same settings.

    Raises InputError if the folder cannot be written or holds a run with other settings.
    """
    directory = RunDirectory(config.directory)
    directory.ledger.repair()
    settings, text = require_continuable(config), to_yaml(config)
    _require_free(directory, text)
    with atomic_write(directory.config) as part:
        part.write_text(text, encoding="utf-8")
    directory.ledger.record(directory.config, settings, [directory.config])
    return directory


def _require_free(directory: RunDirectory, config: str) -> None:
    """Raise InputError if the folder of a new run with this config holds what is not a run's."""
    foreign = directory.foreign
    # A run may have been killed right after this file.
    if directory.config.name in foreign and directory.config.read_bytes() == config.encode():
        foreign.remove(directory.config.name)
    if foreign:
        raise InputError(
            f"{directory.root} holds {', '.join(foreign)}, which no run has made; choose another "
            "name, e.g. name=my-run, or another out"
        )


def require_continuable(config: RunConfig) -> str:
    """Return the hash of the settings that decide results, where the folder has no other run's.

    Raises InputError if it holds a run with other settings.
    """
    directory = RunDirectory(config.directory)
    settings = fingerprint(_result_settings(to_yaml(config)))
    # Without a manifest nothing has been made yet: the settings may still be corrected.
    begun = directory.manifest.is_file() or directory.manifest in directory.ledger
    if begun and directory.ledger.inputs(directory.config) != settings:
        _require_same_settings(directory, config)
    return settings


def _result_settings(text: str) -> dict[str, Any]:
    """The settings in a run's config that decide results, by dotted key; where it is does not."""
    settings = flat(yaml.safe_load(text) or {})
    return {
        key: value
        for key, value in settings.items()
        if affects_results(key) and key not in ("name", "out")
    }


def _require_same_settings(directory: RunDirectory, config: RunConfig) -> None:
    """Raise InputError naming the settings in which the run on disk differs."""
    existing, listed = directory.config, directory.config in directory.ledger
    try:
        if listed and directory.ledger.damaged(existing):
            raise ValueError("it is not what was written")
        before = _result_settings(existing.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, OSError, RecursionError):
        raise InputError(
            f"{existing} is damaged or missing, and the present settings are not known to be those "
            "of this run; restore the file, or choose another name, e.g. name=my-run"
        ) from None
    now = _result_settings(to_yaml(config))
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        first = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:10])
        first += f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        raise InputError(
            f"{existing.parent} holds a run with other settings ({first}); choose another name, "
            "e.g. name=my-run, or remove the directory"
        )


@contextmanager
def recording_failures(directory: RunDirectory, code: Mapping[str, str]) -> Iterator[None]:
    """Record which plug-in of the user's ended the run, so that a corrected one may continue it.

    `code` has the hashes of the plug-ins that run, by name, since a file may be edited meanwhile.
    """
    try:
        yield
    except PluginError as error:
        if error.name in code:
            row = {"plugin": error.name, "code": code[error.name], "error": str(error)}
            directory.logs.mkdir(parents=True, exist_ok=True)
            write_jsonl(directory.failures, [*read_partial_jsonl(directory.failures)[0], row])
        raise


def _recorded_failures(directory: RunDirectory) -> set[str]:
    """The hashes of plug-ins that ended this run; their files may have changed since."""
    return {str(row.get("code")) for row in read_partial_jsonl(directory.failures)[0]}


def require_same_inputs(directory: RunDirectory, **inputs: Any) -> None:
    """Raise InputError if model, prompts or code have changed since the run began: two would mix.

    The code of a plug-in that ended the run may change: what it returned before was checked.
    """
    manifest, ledger = directory.manifest, directory.ledger
    listed = ledger.inputs(manifest)
    if listed == fingerprint(inputs) or (listed is None and not manifest.is_file()):
        return
    try:
        if listed is not None and ledger.damaged(manifest):
            raise ValueError("it is not what was written")
        before = flat(json.loads(manifest.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError, OSError, RecursionError):
        raise InputError(
            f"{manifest} is damaged or missing, and the present model and prompts are not known to "
            "be those of this run; restore the file, or choose another name, e.g. name=my-run"
        ) from None
    now = flat(inputs)
    mended = _recorded_failures(directory)
    changed = [
        key
        for key in now
        if before.get(key) != now[key]
        and not (key.startswith("code.") and before.get(key) in mended)
    ]
    if changed:
        raise InputError(
            f"{directory.root} was begun with inputs other than the present ones "
            f"({', '.join(changed)} differ); choose another name, e.g. name=my-run, or restore the "
            "old inputs"
        )
