"""Reading a study's directory that may be unfinished: its plan, its cells, and what is missing.

Nothing here fails on an absent or half-written cell; it is noted, and the page shows the note.
Only a directory that is no study at all is the user's error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.plugins import name_in, slug
from cropi.report.numbers import SELECTION_PHASES, Row, evaluated_sets, least_pass, of_kind, points
from cropi.report.rows import TIMINGS, metrics_rows, readable_rows
from cropi.study.bills import MEASURES, Bill, Spent, selection_bill, spent_at
from cropi.study.plan import STUDY_FILE
from cropi.study.selected import PoolFacts, Selected

Array = NDArray[np.float64]

DEFAULT_BASELINE = "full"


@dataclass(frozen=True)
class SetCurve:
    """Accuracy on one set at T evaluations: `steps` int64 `(T,)`, `accuracy` float64 `(T,)`."""

    name: str
    targeted: bool
    prompts: int
    steps: NDArray[np.int64]
    stages: NDArray[np.int64]
    accuracy: Array
    spent: Spent


@dataclass(frozen=True)
class Cell:
    """One strategy with one seed: accuracy at T evaluations, what it had paid, what it selected.

    `targeted` and `untargeted` are float64 `(T,)`: means over sets; `untargeted` is NaN where no
    untargeted set was evaluated. `phases` holds the whole run's costs by phase (rollouts, scoring,
    training) and measure.
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
    spent: Spent
    sets: tuple[SetCurve, ...]
    phases: Mapping[str, Mapping[str, float]]
    selected: Selected

    @property
    def finished(self) -> bool:
        """Whether targeted accuracy was measured at the start and after the last planned step."""
        ends = len(self.steps) > 1 and self.steps[0] == 0
        return bool(ends and self.planned_steps and self.steps[-1] >= self.planned_steps)


@dataclass
class StudyFiles:
    """A study's plan and the cells that are there; `missing` says in words what is not."""

    root: Path
    config: dict[str, Any]
    strategies: list[str]
    seeds: list[int]
    baseline: str
    cells: list[Cell] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_cells(root: Path) -> StudyFiles:
    """Read every cell of a study that is there, finished or not.

    Raises InputError if `root` is no study's directory.
    """
    study = _plan(root)
    facts = PoolFacts(root, study.missing)
    begun = set()
    for name, seed, path in _found(study):
        begun.add((name, seed))
        if name not in study.strategies:
            study.strategies.append(name)
        if (cell := _read_cell(study, facts, name, seed, path)) is not None:
            study.cells.append(cell)
    order = {name: i for i, name in enumerate(study.strategies)}
    study.cells.sort(key=lambda c: (order[c.strategy], c.seed))
    _note_absent(study, begun)
    return study


def _plan(root: Path) -> StudyFiles:
    if not (root / STUDY_FILE).is_file() and not (root / "cells").is_dir():
        raise InputError(
            f"{root} is no study: it has neither study.yaml nor cells/; give the directory "
            "out/NAME-study that `cropi compare` made"
        )
    config = mapping_in(root / STUDY_FILE)
    compare = config.get("compare") or {}
    baseline = str(compare.get("baseline") or DEFAULT_BASELINE)
    strategies = [str(name_in(s)) for s in compare.get("strategies") or []]
    seeds = [int(s) for s in compare.get("seeds") or []]
    named = list(dict.fromkeys([*strategies, *([baseline] if strategies else [])]))
    return StudyFiles(root, config, named, seeds, baseline)


def mapping_in(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty where there is none that can be read."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _found(study: StudyFiles) -> Iterator[tuple[str, int, Path]]:
    """Yield (strategy, seed, folder) of every cell; a folder's name is the strategy's as a file."""
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
        running = [c for c in study.cells if c.strategy == name and not c.finished]
        study.missing += [_progress(c) for c in running]


def _seeds(seeds: Sequence[int]) -> str:
    word = "seed" if len(seeds) == 1 else "seeds"
    return f"{word} {', '.join(map(str, seeds))}"


def _progress(cell: Cell) -> str:
    where = f"{cell.strategy} seed {cell.seed}"
    if not len(cell.steps):
        return f"{where}: not evaluated yet; left out of every mean"
    of = f" of {cell.planned_steps}" if cell.planned_steps else ""
    return f"{where}: evaluated up to step {cell.steps[-1]}{of}; left out of every mean"


def _read_cell(
    study: StudyFiles, facts: PoolFacts, name: str, seed: int, path: Path
) -> Cell | None:
    config = mapping_in(path / "config.yaml")
    if not config:
        study.missing.append(f"{name} seed {seed}: no readable config.yaml yet")
        return None
    arm = slug(str(name_in((config.get("selection") or {}).get("strategy")) or "cropi"))
    metrics = metrics_rows(path, study.root, study.missing)
    timings = readable_rows(path / TIMINGS, study.root, study.missing)
    if any(_owner_unknown(r) for r in metrics):
        study.missing.append(f"{name} seed {seed}: rollouts that name no arms count for none")
    bill = selection_bill(metrics, timings, arm)
    parameters = _parameters(study, path, name, seed)
    sets = _sets(metrics, timings, bill, arm, parameters)
    at, targeted, untargeted = _means(metrics, arm)
    curriculum = config.get("curriculum") or {}
    stages, each = curriculum.get("stages"), curriculum.get("steps_per_stage")
    return Cell(
        strategy=name,
        seed=seed,
        path=path,
        arm=arm,
        planned_steps=int(stages) * int(each) if stages and each else None,
        stages=int(stages) if stages else None,
        steps=np.array([int(r["step"]) for r in at], dtype=np.int64),
        targeted=targeted,
        untargeted=untargeted,
        spent=(spent := spent_at(at, bill, timings, arm, parameters)),
        sets=sets,
        phases=_phases(bill, spent),
        selected=facts.of(path, seed, arm),
    )


def _owner_unknown(row: Row) -> bool:
    shared = row.get("kind") == "cost" and row.get("phase") == "rollouts" and not row.get("arm")
    return shared and "arms" not in row


def _parameters(study: StudyFiles, path: Path, name: str, seed: int) -> float:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return float(manifest["model"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        note = f"{name} seed {seed}: manifest.json names no parameters, so its FLOPs are unknown"
        study.missing.append(note)
        return math.nan


def _means(metrics: Sequence[Row], arm: str) -> tuple[list[Row], Array, Array]:
    """An evaluation row a step where every targeted set was measured, and the mean accuracies."""
    targeted = points(metrics, arm, evaluated_sets(metrics, True))
    others = points(metrics, arm, evaluated_sets(metrics, False))
    untargeted = {p.step: p.accuracy for p in others}
    rows = [_row_at(metrics, arm, p.step) for p in targeted]
    return (
        rows,
        np.array([p.accuracy for p in targeted], dtype=np.float64),
        np.array([untargeted.get(p.step, np.nan) for p in targeted], dtype=np.float64),
    )


def _row_at(metrics: Sequence[Row], arm: str, step: int) -> Row:
    """The first evaluation at a step: of the earlier stage, if two of them measured it."""
    return next(r for r in of_kind(metrics, "evaluation", arm) if int(r["step"]) == step)


def _sets(
    metrics: Sequence[Row],
    timings: Sequence[Row],
    bill: Bill,
    arm: str,
    parameters: float,
) -> tuple[SetCurve, ...]:
    k = str(least_pass(metrics))
    found: dict[str, dict[int, Row]] = {}
    for row in of_kind(metrics, "evaluation", arm):
        if (row.get("pass_at") or {}).get(k) is not None:
            found.setdefault(str(row["set"]), {}).setdefault(int(row["step"]), row)
    curves = []
    for name, by_step in found.items():
        rows = [by_step[step] for step in sorted(by_step)]
        curve = SetCurve(
            name=name,
            targeted=bool(rows[0].get("targeted")),
            prompts=int(rows[0].get("prompts") or 0),
            steps=np.array([int(r["step"]) for r in rows], dtype=np.int64),
            stages=np.array([int(r.get("stage") or 0) for r in rows], dtype=np.int64),
            accuracy=np.array([float(r["pass_at"][k]) for r in rows], dtype=np.float64),
            spent=spent_at(rows, bill, timings, arm, parameters),
        )
        curves.append(curve)
    return tuple(curves)


def _phases(bill: Bill, spent: Spent) -> dict[str, dict[str, float]]:
    totals = {phase: dict.fromkeys(MEASURES, 0.0) for phase in SELECTION_PHASES}
    for phases in bill.values():
        for phase, amounts in phases.items():
            for measure, amount in amounts.items():
                totals[phase][measure] += amount
    last = {m: float(spent.training[m][-1]) if len(spent.training[m]) else 0.0 for m in MEASURES}
    return totals | {"training": last}


RESULTS = pa.schema(
    [
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("stage", pa.int64()),
        ("set", pa.string()),
        ("targeted", pa.bool_()),
        ("accuracy", pa.float64()),
        ("prompts", pa.int64()),
        ("generated_tokens", pa.int64()),
        ("trained_tokens", pa.int64()),
        ("flops", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
"""Columns of results.parquet: one row an evaluation of a set.

The last four are cumulative, the selection's rollouts and scoring included (`bills.MEASURES`);
`seconds` is null for a cell without a training clock, `flops` for one without a model's size.
"""


def results_table(cells: Sequence[Cell]) -> pa.Table:
    """Return every evaluation of every cell, unfinished ones too, as a table with RESULTS."""
    return pa.Table.from_pylist([r for c in cells for r in _result_rows(c)], schema=RESULTS)


def _result_rows(cell: Cell) -> Iterator[dict[str, Any]]:
    for curve in cell.sets:
        totals = {m: curve.spent.total(m) for m in MEASURES}
        for i, step in enumerate(curve.steps.tolist()):
            yield {
                "strategy": cell.strategy,
                "seed": cell.seed,
                "step": step,
                "stage": int(curve.stages[i]),
                "set": curve.name,
                "targeted": curve.targeted,
                "accuracy": float(curve.accuracy[i]),
                "prompts": curve.prompts,
                "generated_tokens": int(totals["generated_tokens"][i]),
                "trained_tokens": int(totals["trained_tokens"][i]),
                "flops": _known(totals["flops"][i]),
                "seconds": _known(totals["seconds"][i]),
            }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
