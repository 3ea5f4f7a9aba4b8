"""Where a selection is: in a run, in a stage's folder, or in a file of selections or scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cropi.errors import InputError
from cropi.exchange.exports.folder import EXPORT_RECORD
from cropi.plugins import name_in, slug
from cropi.prompts import read_prompts
from cropi.schema import Prompt, Selection
from cropi.selection import select
from cropi.selection.settings import SCORES_ALONE, SelectionConfig, StrategyChoice
from cropi.store.files import read_table, require_file
from cropi.store.ledger import Ledger
from cropi.store.policy_record import require_intact, weights_deleted
from cropi.store.run_directory import RunDirectory, Stage, is_run
from cropi.store.tables import holds_scores, read_selection, scores_from
from cropi.text import shown
from cropi.verifiers.settings import VerifiersConfig


@dataclass(frozen=True)
class StoredSelection:
    """A selection and what is around it.

    `pool` is what was selected from, `verifiers` who judged it and `policy` what it was selected
    for; each is empty where nothing says so. `without_policy` says why a run has it no more.
    """

    path: Path
    selection: Selection
    pool: Sequence[Prompt] = ()
    verifiers: VerifiersConfig | None = None
    policy: str = ""
    without_policy: str = ""


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
        InputError: there is no selection, a run's is not as it was written, or an argument has no
            effect there.
    """
    file = place / "selection.parquet" if place.is_dir() else place
    if place.is_dir() and not file.is_file():
        file = _stage_of(place, arm, stage).selection
    elif arm is not None or stage is not None:
        name = "arm" if arm is not None else "stage"
        raise InputError(f"{place} is not a run, so that --{name} has no effect; leave it out")
    run = next((f for f in file.absolute().parents if is_run(f)), None)
    if run is not None:
        return _in_run(file.absolute(), ratio, RunDirectory(run))
    selection = _read(file, ratio)
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
    arm = arm or _own_arm(place)
    if arm not in selected:
        raise InputError(
            f"{place} has no selection of an arm {shown(arm, 60)}; --arm can be one of "
            f"{', '.join(selected)}"
        )
    stages = selected[arm]
    wanted = max(stages) if stage is None else stage
    if wanted not in stages:
        listed = ", ".join(map(str, sorted(stages)))
        raise InputError(f"{place}: {arm} has no selection of stage {wanted}; it has {listed}")
    return stages[wanted]


def _selected(run: Path) -> dict[str, dict[int, Stage]]:
    """The stages that have selected, by arm and index; a lost selection is one that was made."""
    selected: dict[str, dict[int, Stage]] = {}
    files = set((run / "arms").glob("*/stages/*/selection.parquet"))
    listed = {run / name for name in Ledger(run).entries if name.endswith("/selection.parquet")}
    for file in sorted(files | listed):
        folder = file.parent
        if folder.name.isdecimal():
            arm = folder.parent.parent.name
            stage = Stage(arm, int(folder.name), folder)
            selected.setdefault(arm, {})[stage.index] = stage
    return selected


def _own_arm(run: Path) -> str:
    """The run's own strategy, which its config names; its baselines come after it."""
    name = name_in(_section(run, "selection").get("strategy"))
    return slug(str(name or StrategyChoice.default))


def _section(run: Path, name: str) -> dict[str, Any]:
    """A section of a run's settings. Raises InputError if the file is damaged."""
    try:
        section = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")).get(name) or {}
    except (yaml.YAMLError, ValueError, OSError, AttributeError, RecursionError):
        section = None
    if not isinstance(section, dict):
        raise _damaged_settings(run)
    return section


def _damaged_settings(run: Path) -> InputError:
    return InputError(
        f"{run / 'config.yaml'} is damaged; restore it from a copy, or give a selection file"
    )


def _verifiers(run: Path) -> VerifiersConfig:
    """Who judged a run's responses. Raises InputError if its settings are damaged."""
    try:
        return VerifiersConfig.model_validate(_section(run, "verifiers"))
    except ValidationError:
        raise _damaged_settings(run) from None


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


def _in_run(file: Path, ratio: float | None, run: RunDirectory) -> StoredSelection:
    pool = run.prompts("pool")
    if changed := next(filter(run.ledger.is_changed, (run.config, file, pool)), None):
        raise InputError(
            f"{changed} is damaged or missing: it is not what the run wrote; continue the run, "
            "which makes it again, or export another stage, or a copy of a selection"
        )
    stage = Stage("", int(file.parent.name) if file.parent.name.isdecimal() else 0, file.parent)
    before = stage.sibling(stage.index - 1).policy if stage.index else run.start
    made = stage.index > 0 or before.is_dir() or before in run.ledger
    without = _why_unusable(before) if made else ""
    model = str(_section(run.root, "model").get("path", ""))
    return StoredSelection(
        file,
        _read(file, ratio),
        read_prompts(pool) if pool.is_file() else (),
        _verifiers(run.root),
        "" if without else str(before) if made else model,
        without,
    )


def _why_unusable(policy: Path) -> str:
    """Why a policy of a run cannot be used any more; empty if it can."""
    if weights_deleted(policy):
        return f"the weights in {policy} were deleted (curriculum.keep_checkpoints=last)"
    if not policy.is_dir():
        return f"{policy} is missing"
    try:
        require_intact(policy)
    except InputError as error:
        return str(error)
    return ""
