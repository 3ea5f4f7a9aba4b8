"""What a cell of a study had paid at each of its evaluations: training alone, and its selection.

A strategy pays for its own training, for the rollouts it looks at and for its scoring. Measuring
(evaluation) and warm-up count for none. FLOPs are those of
`cropi.store.metrics`: 2 per parameter and token sampled or prefilled, 6 a token trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.report.numbers import Row, of_kind, owed_by, training_clock
from cropi.store.metrics import FORWARD, FORWARD_BACKWARD

Array = NDArray[np.float64]
Bill = dict[int, dict[str, dict[str, float]]]
"""What a cell's selection cost: by stage, phase and measure."""

MEASURES = ("generated_tokens", "trained_tokens", "flops", "seconds")
"""What is counted. Of selection: tokens sampled in rollouts are generated, tokens that scoring
sends through the model are trained; prompts' tokens (prefill) count in FLOPs only."""


@dataclass(frozen=True)
class Spent:
    """Cumulative costs at T evaluations, float64 `(T,)` under each of MEASURES.

    `training` is the cell's training alone; `selection` its rollouts and scoring up to then. Where
    the cell has no training clock, seconds are NaN.
    """

    training: Mapping[str, Array]
    selection: Mapping[str, Array]

    def total(self, measure: str) -> Array:
        """Training and selection together, `(T,)`."""
        return self.training[measure] + self.selection[measure]


def selection_bill(metrics: Iterable[Row], timings: Iterable[Row], arm: str) -> Bill:
    """What the arm's selection cost; shared rollouts are paid in stage 0."""
    bill: Bill = {}
    for row in of_kind(metrics, "cost"):
        if owed_by(row, arm):
            amounts = {
                "generated_tokens": float(row.get("tokens_generated") or 0),
                "trained_tokens": float(row.get("tokens_forward") or 0),
                "flops": float(row.get("flops") or 0),
            }
            if row["phase"] == "rollouts":
                amounts["trained_tokens"] = 0.0
            _add(bill, row, amounts)
    for row in timings:
        if owed_by(row, arm):
            _add(bill, row, {"seconds": float(row.get("seconds") or 0)})
    return bill


def _add(bill: Bill, row: Row, amounts: Mapping[str, float]) -> None:
    stage = int(row.get("stage") or 0) if row.get("arm") else 0
    account = bill.setdefault(stage, {}).setdefault(row["phase"], dict.fromkeys(MEASURES, 0.0))
    for measure, amount in amounts.items():
        account[measure] += amount


def spent_at(
    evaluations: Sequence[Row],
    bill: Bill,
    timings: Sequence[Row],
    arm: str,
    parameters: float,
) -> Spent:
    """What had been paid at each evaluation; one row of `evaluations` for each of T steps.

    At step 0 nothing is paid yet; a stage's scoring is paid by its first evaluation.
    """
    counts = {
        name: np.array([float(r.get(name) or 0) for r in evaluations])
        for name in ("generated_tokens", "prefill_tokens", "trained_tokens")
    }
    sampled = counts["generated_tokens"] + counts["prefill_tokens"]
    steps = [float(r["step"]) for r in evaluations]
    training = {
        "generated_tokens": counts["generated_tokens"],
        "trained_tokens": counts["trained_tokens"],
        "flops": parameters * (FORWARD * sampled + FORWARD_BACKWARD * counts["trained_tokens"]),
        "seconds": _clock_at(steps, timings, arm),
    }
    selection = {
        measure: np.array([_owed(bill, row, measure) for row in evaluations])
        for measure in MEASURES
    }
    return Spent(training, selection)


def _clock_at(steps: Sequence[float], timings: Sequence[Row], arm: str) -> Array:
    known, seconds = training_clock(timings, arm)
    if not known:
        return np.full(len(steps), np.nan)
    return np.asarray(np.interp(steps, known, seconds), dtype=np.float64)


def _owed(bill: Bill, row: Row, measure: str) -> float:
    if not row["step"]:
        return 0.0
    due = [phases for stage, phases in bill.items() if stage <= int(row.get("stage") or 0)]
    return sum(amounts[measure] for phases in due for amounts in phases.values())
