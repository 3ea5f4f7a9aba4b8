"""Where a selection is: in a run, in a stage's folder, or in a file of selections or scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cropi.errors import InputError
from cropi.exchange.exports.folder import EXPORT_RECORD
from cropi.prompts import read_prompts
from cropi.schema import Prompt, Selection
from cropi.selection import select
from cropi.selection.settings import SCORES_ALONE, SelectionConfig, StrategyChoice
from cropi.store.files import read_table, require_file
from cropi.store.run_directory import RunDirectory, Stage, is_run
from cropi.store.tables import holds_scores, read_selection, scores_from
from cropi.text import shown
from cropi.verifiers.settings import VerifiersConfig


@dataclass(frozen=True)
class StoredSelection:
    """A selection and what is around it.

    `pool` is what was selected from, `verifiers` who judged it and `policy` what it was selected
    for; each is empty where nothing says so.
    """

    path: Path
    selection: Selection
    pool: Sequence[Prompt] = ()
    verifiers: VerifiersConfig | None = None
    policy: str = ""


def find_selection(
    place: Path, *, arm: str | None = None, stage: int | None = None, ratio: float | None = None
) -> StoredSelection:
    """Return the selection at a run, a stage's folder, a selection file or a score file.

    Args:
        place: the folder or file.
        arm: of a run; default: its own strategy, not a baseline.
        stage: of a run; default: the last that has selected.
        ratio: the share of the pool to select from scores.

    Raises:
        InputError: there is no selection, or an argument that has no effect there.
    """
    file = place / "selection.parquet" if place.is_dir() else place
    if place.is_dir() and not file.is_file():
        file = _stage_of(place, arm, stage).selection
    elif arm is not None or stage is not None:
        name = "arm" if arm is not None else "stage"
        raise InputError(f"{place} is not a run, so that --{name} has no effect; leave it out")
    selection = _read(file, ratio)
    run = next((f for f in file.absolute().parents if is_run(f)), None)
    if run is not None:
        return _in_run(file, selection, RunDirectory(run))
    prompts = file.with_name("prompts.parquet")
    exported = file.with_name(EXPORT_RECORD)
    if exported.is_file():
        raise InputError(
            f"{file.parent} is an export, which holds a part of the pool; give the run, the "
            "selection or the scores that it was made from"
        )
    return StoredSelection(file, selection, read_prompts(prompts) if prompts.is_file() else ())


def _stage_of(place: Path, arm: str | None, stage: int | None) -> Stage:
    """A stage of a run that has selected. Raises InputError if there is none."""
    if (place / "cells").is_dir():
        raise InputError(
            f"{place} is a study of many runs; give one of them, such as {place}/cells/ARM/seed-0"
        )
    if not is_run(place):
        raise InputError(
            f"{place} is neither a run nor a stage's folder (it has no selection.parquet); give "
            "one, or a file of `cropi select` or `cropi score`"
        )
    selected = _selected(place)
    if not selected:
        raise InputError(f"{place} has selected nothing yet; continue the run, then export")
    arm = arm or _own_arm(place, list(selected))
    if arm not in selected:
        raise InputError(
            f"{place} has no selection of an arm {shown(arm, 60)}; it has those of "
            f"{', '.join(selected)}"
        )
    stages = selected[arm]
    wanted = max(stages) if stage is None else stage
    if wanted not in stages:
        listed = ", ".join(map(str, sorted(stages)))
        raise InputError(f"{place}: {arm} has no selection of stage {wanted}; it has {listed}")
    return stages[wanted]


def _selected(run: Path) -> dict[str, dict[int, Stage]]:
    """The stages that have selected, by arm and index."""
    selected: dict[str, dict[int, Stage]] = {}
    for file in sorted((run / "arms").glob("*/stages/*/selection.parquet")):
        folder = file.parent
        if folder.name.isdecimal():
            arm = folder.parent.parent.name
            stage = Stage(arm, int(folder.name), folder)
            selected.setdefault(arm, {})[stage.index] = stage
    return selected


def _own_arm(run: Path, arms: list[str]) -> str:
    """The run's own strategy, which its config names; its baselines come after it."""
    strategy = _config(run).get("selection", {}).get("strategy", {})
    name = strategy.get("name") if isinstance(strategy, dict) else strategy
    slug = StrategyChoice.of(str(name)).slug if name else StrategyChoice.of().slug
    return slug if slug in arms else arms[0]


def _config(run: Path) -> dict[str, Any]:
    """A run's settings. Raises InputError if the file is damaged."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged; restore it from a copy, or give a selection file")
    return config


def _read(file: Path, ratio: float | None) -> Selection:
    """The selection in a file, or made from the scores in it."""
    require_file(file)
    table = read_table(file)
    if holds_scores(table):
        settings = SelectionConfig(strategy=StrategyChoice.of(SCORES_ALONE))
        if ratio is not None:
            settings = settings.model_copy(update={"ratio": ratio})
        return select(scores_from(table, file), settings, title=str(file))
    if ratio is not None:
        raise InputError(
            f"{file} is a selection already, so that --ratio has no effect; leave it out"
        )
    return read_selection(file)


def _in_run(file: Path, selection: Selection, run: RunDirectory) -> StoredSelection:
    config, pool = _config(run.root), run.prompts("pool")
    return StoredSelection(
        file,
        selection,
        read_prompts(pool) if pool.is_file() else (),
        VerifiersConfig.model_validate(config.get("verifiers") or {}),
        _policy_before(file.parent, run) or str((config.get("model") or {}).get("path", "")),
    )


def _policy_before(stage: Path, run: RunDirectory) -> str:
    """The checkpoint that a stage begins with; empty where it is the run's model, or deleted."""
    before = stage.parent / str(int(stage.name) - 1) if stage.name.isdecimal() else stage
    for folder in (before / "policy", run.start):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return str(folder)
    return ""
