"""Reading a study's directory that may be unfinished: its plan, its runs, and what is missing.

Nothing here fails on an absent or half-written run; it is noted, and the page shows the note.
Only a directory that is not a study at all is the user's error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.plugins import name_in, slug
from cropi.short_repr import ShortRepr
from cropi.store.ledger import Ledger
from cropi.store.metrics import CostRow, EvaluationRow, StageRow
from cropi.study.accuracy import (
    RunRows,
    accuracy_points,
    compared_k,
    evaluated_sets,
    measured,
    read_run_rows,
)
from cropi.study.costs import (
    MEASURES,
    CumulativeCosts,
    cumulative_costs,
    selection_costs,
    selection_totals,
)
from cropi.study.selected_prompts import PoolReader, RunSelections
from cropi.study.study_plan import STUDY_FILE

Array = NDArray[np.float64]

DEFAULT_BASELINE = "full"


@dataclass(frozen=True, repr=False)
class SetCurve(ShortRepr):
    """Accuracy on one set at T evaluations: `steps` int64 `(T,)`, `accuracy` float64 `(T,)`."""

    name: str
    targeted: bool
    prompts: int
    steps: NDArray[np.int64]
    stages: NDArray[np.int64]
    accuracy: Array
    costs: CumulativeCosts


@dataclass(frozen=True, repr=False)
class RunResult(ShortRepr):
    """One strategy with one seed: accuracy at T evaluations, what it had paid, what it selected.

    `targeted` and `untargeted` are float64 `(T,)`: means over sets; `untargeted` is NaN where no
    untargeted set was evaluated. `phases` holds the whole run's costs by phase (rollouts, scoring,
    training) and measure. `split_half` holds, by stage and target, the cosine between the
    directions of two halves of the target's prompts: how reliable it was to rank by it.
    """

    strategy: str
    seed: int
    path: Path
    arm: str
    planned_steps: int | None
    stages: int | None
    steps: NDArray[np.int64]
    targeted: Array
    untargeted: Array
    costs: CumulativeCosts
    sets: tuple[SetCurve, ...]
    phases: Mapping[str, Mapping[str, float]]
    selected: RunSelections
    split_half: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether targeted accuracy was measured at the start and after the last planned step."""
        ends = len(self.steps) > 1 and self.steps[0] == 0
        return bool(ends and self.planned_steps and self.steps[-1] >= self.planned_steps)


@dataclass(repr=False)
class StudyFiles(ShortRepr):
    """A study's plan and the runs that are there; `missing` says in words what is not."""

    root: Path
    config: dict[str, Any]
    strategies: list[str]
    seeds: list[int]
    baseline: str
    runs: list[RunResult] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_study(root: Path) -> StudyFiles:
    """Read every run of a study that is there, finished or not.

    Raises InputError if `root` is not a study's directory.
    """
    study = _read_plan(root)
    pools = PoolReader(root, study.missing)
    begun = set()
    for name, seed, path in _run_folders(study):
        begun.add((name, seed))
        if (run := _read_run(study, pools, name, seed, path)) is not None:
            study.runs.append(run)
            if name not in study.strategies:
                study.strategies.append(name)
    order = {name: i for i, name in enumerate(study.strategies)}
    study.runs.sort(key=lambda run: (order[run.strategy], run.seed))
    _note_absent(study, begun)
    return study


def _read_plan(root: Path) -> StudyFiles:
    if not (root / STUDY_FILE).is_file() and not (root / "cells").is_dir():
        raise InputError(
            f"{root} is not a study: it has neither study.yaml nor cells/; give the directory "
            "out/NAME-study that `cropi compare` made"
        )
    missing = Ledger(root).notes()
    config = {} if missing else read_yaml_mapping(root / STUDY_FILE)
    compare = config.get("compare") or {}
    baseline = str(compare.get("baseline") or DEFAULT_BASELINE)
    strategies = [str(name_in(s)) for s in compare.get("strategies") or []]
    seeds = [int(s) for s in compare.get("seeds") or []]
    named = list(dict.fromkeys([*strategies, *([baseline] if strategies else [])]))
    return StudyFiles(root, config, named, seeds, baseline, missing=missing)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping; empty if there is no such file or it cannot be read."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _run_folders(study: StudyFiles) -> Iterator[tuple[str, int, Path]]:
    """Yield (strategy, seed, folder) of every run; a folder is named by the strategy's slug."""
    names = {slug(s): s for s in study.strategies}
    for path in sorted(study.root.glob("cells/*/seed-*")):
        number = path.name.removeprefix("seed-")
        if path.is_dir() and number.isdigit():
            folder = path.parent.name
            yield names.get(slug(folder), folder), int(number), path


def _note_absent(study: StudyFiles, begun: set[tuple[str, int]]) -> None:
    for name in study.strategies:
        absent = [s for s in study.seeds if (name, s) not in begun]
        if absent:
            study.missing.append(f"{name}: {_seeds(absent)} not begun")
        unfinished = [r for r in study.runs if r.strategy == name and not r.finished]
        study.missing += [_progress(run) for run in unfinished]


def _seeds(seeds: Sequence[int]) -> str:
    word = "seed" if len(seeds) == 1 else "seeds"
    return f"{word} {', '.join(map(str, seeds))}"


def _progress(run: RunResult) -> str:
    where = f"{run.strategy} seed {run.seed}"
    if not len(run.steps):
        return f"{where}: not evaluated yet; left out of every mean"
    of = f" of {run.planned_steps}" if run.planned_steps else ""
    return f"{where}: evaluated up to step {run.steps[-1]}{of}; left out of every mean"


def _read_run(
    study: StudyFiles, pools: PoolReader, name: str, seed: int, path: Path
) -> RunResult | None:
    ledger = Ledger(path)
    damaged = ledger.changed()
    study.missing += [f"{name} seed {seed}: {note}" for note in ledger.notes()]
    settings = path / "config.yaml"
    config = {} if settings in damaged else read_yaml_mapping(settings)
    if not config:
        study.missing.append(f"{name} seed {seed}: no readable config.yaml yet")
        return None
    if (place := _made_in(config)) not in ("", f"{path.parent.name}/{path.name}"):
        study.missing.append(
            f"{name} seed {seed}: left out, as its folder holds the run of {place}; move it back, "
            "or remove it"
        )
        return None
    arm = slug(str(name_in((config.get("selection") or {}).get("strategy")) or "cropi"))
    rows = read_run_rows(path, study.root, study.missing, damaged)
    if any(_user_unknown(row) for row in rows.of_kind(CostRow)):
        study.missing.append(f"{name} seed {seed}: rollouts that name no arms are charged to none")
    parameters = _parameters(study, path, name, seed)
    evaluations, targeted, untargeted = _mean_accuracies(rows, arm)
    costs = cumulative_costs(evaluations, rows, arm, parameters)
    curriculum = config.get("curriculum") or {}
    stages, steps = curriculum.get("stages"), curriculum.get("steps_per_stage")
    return RunResult(
        strategy=name,
        seed=seed,
        path=path,
        arm=arm,
        planned_steps=int(stages) * int(steps) if stages and steps else None,
        stages=int(stages) if stages else None,
        steps=np.array([row.step for row in evaluations], dtype=np.int64),
        targeted=targeted,
        untargeted=untargeted,
        costs=costs,
        sets=_set_curves(rows, arm, parameters),
        phases=selection_totals(selection_costs(rows, arm)) | {"training": _last(costs.training)},
        selected=pools.selections(path, seed, arm),
        split_half=_split_halves(rows, arm),
    )


def _made_in(config: Mapping[str, Any]) -> str:
    """The last two folders of the place that a run was made in; empty where it does not say.

    A study may be moved. A run that is copied or moved inside of one would count as another's.
    """
    out, name = config.get("out"), config.get("name")
    return f"{Path(str(out)).name}/{name}" if out and name else ""


def _split_halves(rows: RunRows, arm: str) -> dict[int, dict[str, float]]:
    """Each scored stage's targets with their split-half cosine, where it could be measured."""
    by_stage: dict[int, dict[str, float]] = {}
    for row in rows.of_kind(StageRow, arm):
        for name, reliability in row.targets.items():
            cosine = reliability.get("split_half")
            if isinstance(cosine, int | float) and math.isfinite(cosine):
                by_stage.setdefault(row.stage, {})[name] = float(cosine)
    return by_stage


def _user_unknown(row: CostRow) -> bool:
    return row.phase == "rollouts" and not row.arm and row.arms is None


def _parameters(study: StudyFiles, path: Path, name: str, seed: int) -> float:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return float(manifest["model"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        note = f"{name} seed {seed}: manifest.json names no parameters, so its FLOPs are unknown"
        study.missing.append(note)
        return math.nan


def _mean_accuracies(rows: RunRows, arm: str) -> tuple[list[EvaluationRow], Array, Array]:
    """One evaluation per step where every targeted set was measured, and the mean accuracies."""
    targeted = accuracy_points(rows, arm, evaluated_sets(rows, True))
    others = accuracy_points(rows, arm, evaluated_sets(rows, False))
    untargeted = {p.step: p.accuracy for p in others}
    return (
        [p.evaluation for p in targeted],
        np.array([p.accuracy for p in targeted], dtype=np.float64),
        np.array([untargeted.get(p.step, np.nan) for p in targeted], dtype=np.float64),
    )


def _set_curves(rows: RunRows, arm: str, parameters: float) -> tuple[SetCurve, ...]:
    k = compared_k(rows)
    by_set: dict[str, dict[int, EvaluationRow]] = {}
    for row in rows.of_kind(EvaluationRow, arm):
        if measured(row, k):
            by_set.setdefault(row.set, {}).setdefault(row.step, row)
    curves = []
    for name, by_step in by_set.items():
        evaluations = [by_step[step] for step in sorted(by_step)]
        curve = SetCurve(
            name=name,
            targeted=evaluations[0].targeted,
            prompts=evaluations[0].prompts,
            steps=np.array([row.step for row in evaluations], dtype=np.int64),
            stages=np.array([row.stage or 0 for row in evaluations], dtype=np.int64),
            accuracy=np.array([row.pass_at[k] for row in evaluations], dtype=np.float64),
            costs=cumulative_costs(evaluations, rows, arm, parameters),
        )
        curves.append(curve)
    return tuple(curves)


def _last(amounts: Mapping[str, Array]) -> dict[str, float]:
    return {m: float(amounts[m][-1]) if len(amounts[m]) else 0.0 for m in MEASURES}
