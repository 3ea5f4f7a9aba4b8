"""What a run measured: its rows, the sets that were evaluated, and accuracy at every step."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cropi.store.metrics import (
    METRICS,
    TIMINGS,
    AnyRow,
    EvaluationRow,
    Kind,
    read_rows,
    to_json,
)


@dataclass(frozen=True)
class RunRows:
    """All rows of a run: metrics in the order of their file, then timings."""

    rows: Sequence[AnyRow] = ()

    def of_kind(self, kind: type[Kind], arm: str | None = None) -> list[Kind]:
        """Return the rows of one class, of one arm if it is given."""
        rows: list[Kind] = [row for row in self.rows if isinstance(row, kind)]
        return rows if arm is None else [row for row in rows if getattr(row, "arm", None) == arm]


@dataclass(frozen=True, slots=True)
class AccuracyPoint:
    """Mean accuracy over sets at one step; `error` is its standard error over prompts.

    `evaluation` is one of the rows behind it: all of a step hold the same costs of training.
    """

    step: int
    stage: int
    accuracy: float
    error: float
    evaluation: EvaluationRow


def read_run_rows(
    run: Path, root: Path, missing: list[str], damaged: Collection[Path] = ()
) -> RunRows:
    """Read the rows of a run that may be unfinished, stages that have just ended included.

    Lines that cannot be read are left out and reported in `missing`, with the file's name in
    `root`; a missing or `damaged` file has no rows.
    """
    metrics = [] if run / METRICS in damaged else _readable(run / METRICS, root, missing)
    present = {json.dumps(to_json(row), sort_keys=True) for row in metrics}
    for file in sorted(set(run.glob(f"arms/*/stages/*/{METRICS}")) - set(damaged)):
        late = _readable(file, root, missing)
        metrics += [r for r in late if json.dumps(to_json(r), sort_keys=True) not in present]
    return RunRows([*metrics, *_readable(run / TIMINGS, root, missing)])


def _readable(path: Path, root: Path, missing: list[str]) -> list[AnyRow]:
    rows = read_rows(path)
    if rows.unreadable:
        missing.append(f"{path.relative_to(root)}: {rows.unreadable} unreadable line(s) left out")
    return list(rows.rows)


def evaluated_sets(rows: RunRows, targeted: bool | None = None) -> list[str]:
    """Return the names of the evaluated sets, in the order they appear."""
    evaluations = rows.of_kind(EvaluationRow)
    return list(dict.fromkeys(r.set for r in evaluations if targeted in (None, r.targeted)))


def measured_ks(rows: RunRows) -> list[int]:
    """Return every k for which pass@k was measured, ascending."""
    return sorted({k for row in rows.of_kind(EvaluationRow) for k in row.pass_at})


def compared_k(rows: RunRows) -> int:
    """Return the k of the accuracy that is compared: 1 wherever pass@1 was measured."""
    return next(iter(measured_ks(rows)), 1)


def measured(row: EvaluationRow, k: int) -> bool:
    """Whether a row holds pass@k; where no prompt could be judged it is NaN."""
    return not math.isnan(row.pass_at.get(k, math.nan))


def accuracy_points(
    rows: RunRows, arm: str, sets: Sequence[str], k: int | None = None
) -> list[AccuracyPoint]:
    """Return the arm's mean pass@k over `sets`, at the steps where all of them were measured.

    `k` defaults to the one that is compared. A step that was evaluated twice (at the end of one
    stage and at the start of the next) counts once, for the earlier stage: before the next stage's
    scoring is paid.
    """
    k = k or compared_k(rows)
    by_step: dict[int, dict[str, EvaluationRow]] = {}
    for row in rows.of_kind(EvaluationRow, arm):
        if row.set in sets and measured(row, k):
            by_step.setdefault(row.step, {}).setdefault(row.set, row)
    complete = [step for step, by_set in by_step.items() if sets and len(by_set) == len(set(sets))]
    return [_mean_point(step, list(by_step[step].values()), k) for step in sorted(complete)]


def _mean_point(step: int, rows: Sequence[EvaluationRow], k: int) -> AccuracyPoint:
    rates = [row.pass_at[k] for row in rows]
    # The binomial error is exact for one response per prompt and an upper bound for more.
    variances = [p * (1 - p) / max(1, row.prompts) for p, row in zip(rates, rows, strict=True)]
    error = math.sqrt(max(0.0, sum(variances))) / len(rows)
    stage = min(row.stage or 0 for row in rows)
    return AccuracyPoint(step, stage, sum(rates) / len(rates), error, rows[0])
