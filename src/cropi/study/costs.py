"""What a run cost: by phase, and cumulatively at each evaluation. The one ledger of all pages.

An arm pays for its own training, for the rollouts that its strategy uses and for its scoring.
Measuring (evaluation) and what all arms share alike (setup, warm-up) are charged to no arm. FLOPs
are those of `cropi.store.metrics`: 2 per parameter and token sampled or prefilled, 6 per token
trained.

Legend: T evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.short_repr import ShortRepr
from cropi.store.metrics import (
    FORWARD,
    FORWARD_BACKWARD,
    ClockRow,
    CostRow,
    EvaluationRow,
    TimingRow,
)
from cropi.study.accuracy import RunRows

Array = NDArray[np.float64]

SHARED = "shared"
"""The arm of what is paid once for all arms."""
PHASES = (
    "setup",
    "prompts",
    "warmup",
    "rollouts",
    "scoring",
    "selection",
    "training",
    "evaluation",
    "report",
)
SELECTION_PHASES = ("rollouts", "scoring")
"""The phases of selection, which an arm pays for besides its training."""
MEASURES = ("generated_tokens", "trained_tokens", "flops", "seconds")
"""What is counted cumulatively. Of selection: tokens sampled in rollouts are generated, tokens that
scoring sends through the model are trained; prompts' tokens (prefill) count in FLOPs only."""

SelectionCosts = dict[int, dict[str, dict[str, float]]]
"""What an arm's selection cost: by stage, phase and measure."""


@dataclass(slots=True)
class PhaseCost:
    """What one phase cost in one arm (SHARED: paid once for all arms)."""

    arm: str
    phase: str
    seconds: float = 0.0
    tokens_generated: float = 0.0
    tokens_forward: float = 0.0
    tokens_backward: float = 0.0
    flops: float = 0.0

    @property
    def tokens(self) -> float:
        """Tokens sampled, and tokens run forward with or without backward."""
        return self.tokens_generated + self.tokens_forward


@dataclass(frozen=True, repr=False)
class CumulativeCosts(ShortRepr):
    """Cumulative costs at T evaluations, float64 `(T,)` under each of MEASURES.

    `training` is the arm's training alone; `selection` its rollouts and scoring up to then. Seconds
    are NaN without a training clock, FLOPs without a model's size.
    """

    training: Mapping[str, Array]
    selection: Mapping[str, Array]

    def total(self, measure: str) -> Array:
        """Training and selection together, `(T,)`."""
        return self.training[measure] + self.selection[measure]


def phase_costs(rows: RunRows, arms: Sequence[str]) -> list[PhaseCost]:
    """Add up cost rows and wall times; what all arms share comes first, phases in their order."""
    ledger: dict[tuple[str, str], PhaseCost] = {}

    def entry(row: CostRow | TimingRow) -> PhaseCost:
        key = (row.arm or SHARED, row.phase)
        return ledger.setdefault(key, PhaseCost(*key))

    for cost in rows.of_kind(CostRow):
        _add_tokens(entry(cost), cost)
    for timing in rows.of_kind(TimingRow):
        entry(timing).seconds += timing.seconds
    order = {arm: i for i, arm in enumerate([SHARED, *arms])}
    return sorted(
        ledger.values(), key=lambda c: (order.get(c.arm, len(order)), _phase_order(c.phase))
    )


def _add_tokens(total: PhaseCost, row: CostRow) -> None:
    total.tokens_generated += row.tokens_generated
    total.tokens_forward += row.tokens_forward
    total.tokens_backward += row.tokens_backward
    total.flops += row.flops


def _phase_order(phase: str) -> tuple[int, str]:
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)


def charged_to(row: CostRow | TimingRow, arm: str) -> bool:
    """Whether the arm pays for this row of selection costs.

    Rows of one arm are that arm's; a row of shared rollouts names in `arms` who uses them.
    """
    if row.phase not in SELECTION_PHASES:
        return False
    return row.arm == arm if row.arm else arm in (row.arms or ())


def selection_costs(rows: RunRows, arm: str) -> SelectionCosts:
    """Return what the arm's selection cost; shared rollouts are paid in stage 0.

    A token counts once for being sampled and once for a forward pass, with or without backward, as
    in training's own count.
    """
    costs: SelectionCosts = {}
    for row in rows.of_kind(CostRow):
        if charged_to(row, arm):
            amounts = {
                "generated_tokens": row.tokens_generated,
                "trained_tokens": 0 if row.phase == "rollouts" else row.tokens_forward,
                "flops": row.flops,
            }
            _add(costs, row, amounts)
    for timing in rows.of_kind(TimingRow):
        if charged_to(timing, arm):
            _add(costs, timing, {"seconds": timing.seconds})
    return costs


def _add(costs: SelectionCosts, row: CostRow | TimingRow, amounts: Mapping[str, float]) -> None:
    stage = (row.stage or 0) if row.arm else 0
    account = costs.setdefault(stage, {}).setdefault(row.phase, dict.fromkeys(MEASURES, 0.0))
    for measure, amount in amounts.items():
        account[measure] += amount


def training_clock(rows: RunRows, arm: str) -> tuple[Array, Array] | None:
    """Return (steps, seconds) of the arm's training clock, from (0, 0); None if there is none."""
    seconds = {row.step: row.seconds for row in rows.of_kind(ClockRow, arm)}
    if not seconds:
        return None
    seconds[0] = 0.0
    steps = sorted(seconds)
    return np.array(steps, dtype=np.float64), np.array([seconds[s] for s in steps])


def cumulative_costs(
    evaluations: Sequence[EvaluationRow],
    rows: RunRows,
    arm: str,
    parameters: float = math.nan,
) -> CumulativeCosts:
    """Return what the arm had paid at each of T evaluations; `parameters` prices its tokens.

    At step 0 nothing is paid yet; a stage's scoring is paid by its first evaluation.
    """
    generated = np.array([float(r.generated_tokens) for r in evaluations])
    trained = np.array([float(r.trained_tokens) for r in evaluations])
    sampled = generated + np.array([float(r.prefill_tokens) for r in evaluations])
    training = {
        "generated_tokens": generated,
        "trained_tokens": trained,
        "flops": parameters * (FORWARD * sampled + FORWARD_BACKWARD * trained),
        "seconds": _clock_at([float(r.step) for r in evaluations], training_clock(rows, arm)),
    }
    by_stage = selection_costs(rows, arm)
    selection = {
        measure: np.array([_paid_by(by_stage, row, measure) for row in evaluations], dtype=float)
        for measure in MEASURES
    }
    return CumulativeCosts(training, selection)


def _clock_at(steps: Sequence[float], clock: tuple[Array, Array] | None) -> Array:
    if clock is None:
        return np.full(len(steps), np.nan)
    return np.asarray(np.interp(steps, *clock), dtype=np.float64)


def _paid_by(by_stage: SelectionCosts, row: EvaluationRow, measure: str) -> float:
    """Return what selection had cost by an evaluation."""
    if not row.step:
        return 0.0
    due = [phases for stage, phases in by_stage.items() if stage <= (row.stage or 0)]
    return sum(amounts[measure] for phases in due for amounts in phases.values())


def selection_totals(by_stage: SelectionCosts) -> dict[str, dict[str, float]]:
    """Return the whole run's selection costs by phase and measure."""
    totals = {phase: dict.fromkeys(MEASURES, 0.0) for phase in SELECTION_PHASES}
    for phases in by_stage.values():
        for phase, amounts in phases.items():
            for measure, amount in amounts.items():
                totals[phase][measure] += amount
    return totals
