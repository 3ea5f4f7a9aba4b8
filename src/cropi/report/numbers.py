"""The numbers of a run, as pure functions over its rows, for the command line and the page.

Accuracy is read off the evaluation curve with straight lines between evaluations. "Reached" means
the first crossing. Every arm pays for what it needs: rollouts and scoring count in the tokens and
the seconds of the arms whose strategy uses them (docs/method.md); what all arms
share alike (setup, warm-up) and the cost of measuring (evaluation) count for none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Row = Mapping[str, Any]
Axis = Literal["steps", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "tokens", "seconds")
SELECTION_PHASES = ("rollouts", "scoring")
"""The phases of selection, which an arm pays for beside its training."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: mean accuracy over sets, its standard error, and what training had used."""

    step: int
    stage: int
    accuracy: float
    error: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy `y` against `x`, measured at `step`; `error` is one standard error over prompts."""

    step: list[int]
    x: list[float]
    y: list[float]
    error: list[float]


def of_kind(rows: Iterable[Row], kind: str, arm: str | None = None) -> list[Row]:
    """Return the rows of one kind, of one arm if it is given."""
    return [r for r in rows if r.get("kind") == kind and arm in (None, r.get("arm"))]


def evaluated_sets(rows: Iterable[Row], targeted: bool | None = None) -> list[str]:
    """Return the names of the evaluated sets, in the order they appear."""
    found = of_kind(rows, "evaluation")
    names = [r["set"] for r in found if targeted in (None, bool(r.get("targeted")))]
    return list(dict.fromkeys(names))


def passes(rows: Iterable[Row]) -> list[int]:
    """Return every k for which pass@k was measured."""
    return sorted({int(k) for r in of_kind(rows, "evaluation") for k in r.get("pass_at") or {}})


def least_pass(rows: Iterable[Row]) -> int:
    """Return the k of the accuracy that is compared: 1 wherever pass@1 was measured."""
    return next(iter(passes(rows)), 1)


def baseline_of(arms: Sequence[str], main: str) -> str | None:
    """Return the arm that `main` is compared with: full data if it is there, else the first."""
    others = [a for a in arms if a != main]
    return "full" if "full" in others else next(iter(others), None)


def points(rows: Iterable[Row], arm: str, sets: Sequence[str], k: int | None = None) -> list[Point]:
    """Return the arm's mean pass@k over `sets`, at the steps where every one of them was measured.

    `k` is the least that was measured unless it is given.
    A step that was evaluated twice (the end of one stage, the start of the next) counts once, for
    the earlier stage, before the next stage's scoring is paid.
    """
    rows = list(rows)
    k = k or least_pass(rows)
    by_step: dict[int, dict[str, Row]] = {}
    for row in of_kind(rows, "evaluation", arm):
        if row["set"] in sets and (row.get("pass_at") or {}).get(str(k)) is not None:
            by_step.setdefault(int(row["step"]), {}).setdefault(row["set"], row)
    complete = [step for step, found in by_step.items() if sets and len(found) == len(set(sets))]
    return [_mean_point(step, list(by_step[step].values()), k) for step in sorted(complete)]


def _mean_point(step: int, rows: Sequence[Row], k: int) -> Point:
    rates = [float(r["pass_at"][str(k)]) for r in rows]
    # The binomial error is exact for one response a prompt and an upper bound for more.
    variances = [
        p * (1 - p) / max(1, int(r.get("prompts") or 1)) for p, r in zip(rates, rows, strict=True)
    ]
    used = max(
        int(r.get("generated_tokens") or 0) + int(r.get("trained_tokens") or 0) for r in rows
    )
    stage = min(int(r.get("stage") or 0) for r in rows)
    error = math.sqrt(max(0.0, sum(variances))) / len(rows)
    return Point(step, stage, sum(rates) / len(rates), error, used)


def first_reached(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """Return where the line through (x, y) first reaches `level`; None if it never does."""
    for i, value in enumerate(y):
        if value >= level - 1e-9:
            if i == 0 or value == y[i - 1]:
                return x[i]
            share = (level - y[i - 1]) / (value - y[i - 1])
            return x[i - 1] + min(1.0, max(0.0, share)) * (x[i] - x[i - 1])
    return None


def paid_before(
    metrics: Sequence[Row], timings: Sequence[Row], arm: str, axis: Axis
) -> dict[int, float]:
    """Return what the arm paid before each stage, in the axis' unit: rollouts (stage 0), scoring.

    A token counts once for being sampled and once for a forward pass, with or without backward,
    as in training's own count.
    """
    if axis == "steps":
        return {}
    rows = of_kind(metrics, "cost") if axis == "tokens" else list(timings)
    bill: dict[int, float] = {}
    for row in rows:
        if owed_by(row, arm):
            stage = int(row.get("stage") or 0)
            bill[stage] = bill.get(stage, 0.0) + _amount(row, axis)
    return bill


def owed_by(row: Row, arm: str) -> bool:
    """Whether the arm pays for this row of costs or of seconds.

    Rows of one arm are that arm's; a row of shared rollouts names in `arms` who looks at them.
    """
    if row.get("phase") not in SELECTION_PHASES:
        return False
    return row["arm"] == arm if row.get("arm") else arm in (row.get("arms") or ())


def _amount(row: Row, axis: Axis) -> float:
    if axis == "seconds":
        return float(row.get("seconds") or 0)
    if row["phase"] == "rollouts":
        return float(row.get("tokens_generated") or 0)
    return float(row.get("tokens_forward") or 0)


def training_clock(timings: Iterable[Row], arm: str) -> tuple[list[float], list[float]]:
    """Return (steps, seconds) of the arm's training clock, from (0, 0); empty if there is none."""
    rows = [r for r in timings if r.get("phase") == "clock" and r.get("arm") == arm]
    known = {int(r["step"]): float(r["seconds"]) for r in rows}
    if not known:
        return [], []
    known[0] = 0.0
    steps = sorted(known)
    return [float(s) for s in steps], [known[s] for s in steps]


def along(
    axis: Axis,
    curve: Sequence[Point],
    bill: Mapping[int, float],
    clock: tuple[list[float], list[float]],
) -> Curve | None:
    """Place the points on an axis; None if the run does not hold what it takes.

    Accuracy stands still while rollouts and scoring are paid, so those show as level stretches.
    """
    if axis == "seconds" and not clock[0]:
        return None
    own = [_own_cost(axis, p, clock) for p in curve]
    placed, paid = Curve([], [], [], []), 0.0
    for i, point in enumerate(curve):
        owed = sum(v for stage, v in bill.items() if stage <= point.stage) if point.step else 0.0
        if owed > paid and i:
            _place(placed, own[i - 1] + owed, curve[i - 1])
        paid = max(paid, owed)
        _place(placed, own[i] + paid, point)
    return placed


def _own_cost(axis: Axis, point: Point, clock: tuple[list[float], list[float]]) -> float:
    if axis == "seconds":
        return float(np.interp(point.step, *clock))
    return float(point.step if axis == "steps" else point.tokens)


def _place(curve: Curve, x: float, point: Point) -> None:
    curve.step.append(point.step)
    curve.x.append(x)
    curve.y.append(point.accuracy)
    curve.error.append(point.error)


def arm_curve(
    metrics: Sequence[Row],
    timings: Sequence[Row],
    arm: str,
    sets: Sequence[str],
    axis: Axis = "steps",
    k: int | None = None,
) -> Curve | None:
    """Return one arm's accuracy curve on an axis; None without evaluations (or without a clock)."""
    measured = points(metrics, arm, sets, k)
    if not measured:
        return None
    return along(
        axis, measured, paid_before(metrics, timings, arm, axis), training_clock(timings, arm)
    )


def stage_ends(metrics: Sequence[Row], timings: Sequence[Row], arm: str, axis: Axis) -> list[float]:
    """Return where the arm's stages were last evaluated on an axis, the last stage left out."""
    sets = evaluated_sets(metrics)
    curve = arm_curve(metrics, timings, arm, sets, axis)
    ends = {p.stage: p.step for p in points(metrics, arm, sets) if p.step}
    if curve is None:
        return []
    return [curve.x[curve.step.index(step)] for step in sorted(ends.values())[:-1]]
