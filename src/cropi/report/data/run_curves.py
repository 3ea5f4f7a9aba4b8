"""Accuracy of an arm against steps, tokens or seconds, by the rules of `cropi.study.measures`.

What an arm's selection costs is paid before the stage's first step: there the curve is flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.store.metrics import EvaluationRow
from cropi.study.accuracy import RunRows, accuracy_points, evaluated_sets
from cropi.study.costs import (
    CumulativeCosts,
    cumulative_costs,
    selection_costs,
    selection_totals,
    training_clock,
)
from cropi.study.measures import cost_accuracy_curve, first_crossing

Array = NDArray[np.float64]
Axis = Literal["steps", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy `y` against `x`, measured at `step`; `error` is one standard error over prompts."""

    step: list[float]
    x: list[float]
    y: list[float]
    error: list[float]


def arm_curve(
    rows: RunRows, arm: str, sets: Sequence[str], axis: Axis = "steps", k: int | None = None
) -> Curve | None:
    """Return one arm's accuracy curve on an axis; None without evaluations (or without a clock)."""
    measured = accuracy_points(rows, arm, sets, k)
    if not measured or (axis == "seconds" and training_clock(rows, arm) is None):
        return None
    evaluations = [point.evaluation for point in measured]
    training, selection = _axis_costs(axis, evaluations, cumulative_costs(evaluations, rows, arm))
    values = np.array([[p.step, p.accuracy, p.error] for p in measured], dtype=np.float64).T
    x, y = cost_accuracy_curve(np.tile(training, (3, 1)), np.tile(selection, (3, 1)), values)
    # Between evaluations there is a knot of its own only where selection was paid.
    shown = np.ones(x.shape[-1], dtype=bool)
    shown[1::2] = np.diff(selection) > 0
    steps, accuracies, errors = y[:, shown].tolist()
    return Curve(steps, x[0, shown].tolist(), accuracies, errors)


def _axis_costs(
    axis: Axis, evaluations: Sequence[EvaluationRow], costs: CumulativeCosts
) -> tuple[Array, Array]:
    """Return what training and selection had cost at each evaluation, in the axis' unit."""
    if axis == "steps":
        steps = np.array([float(row.step) for row in evaluations])
        return steps, np.zeros(len(steps))
    if axis == "seconds":
        return costs.training["seconds"], costs.selection["seconds"]
    training, selection = costs.training, costs.selection
    return (
        training["generated_tokens"] + training["trained_tokens"],
        selection["generated_tokens"] + selection["trained_tokens"],
    )


def first_reached(curve: Curve | None, level: float) -> float | None:
    """Return where a curve first reaches a level; None if it never does."""
    if curve is None or not curve.x:
        return None
    x, y = np.array([curve.x]), np.array([curve.y])
    place = float(first_crossing(x, y, np.array([level]))[0])
    return place if np.isfinite(place) else None


def stage_ends(rows: RunRows, arm: str, axis: Axis) -> list[float]:
    """Return where the arm's stages were last evaluated on an axis, the last stage left out."""
    sets = evaluated_sets(rows)
    curve = arm_curve(rows, arm, sets, axis)
    ends = {p.stage: p.step for p in accuracy_points(rows, arm, sets) if p.step}
    if curve is None:
        return []
    return [curve.x[curve.step.index(step)] for step in sorted(ends.values())[:-1]]


def total_tokens(rows: RunRows, arm: str) -> float | None:
    """Return all tokens the arm used up to its last evaluation; None if it was not evaluated."""
    training = [r.generated_tokens + r.trained_tokens for r in rows.of_kind(EvaluationRow, arm)]
    if not training:
        return None
    return max(training) + _selection_total(rows, arm, ("generated_tokens", "trained_tokens"))


def total_seconds(rows: RunRows, arm: str) -> float | None:
    """Return all seconds the arm used up to its last clock row; None without a clock."""
    clock = training_clock(rows, arm)
    if clock is None:
        return None
    return float(clock[1][-1]) + _selection_total(rows, arm, ("seconds",))


def _selection_total(rows: RunRows, arm: str, measures: Sequence[str]) -> float:
    totals = selection_totals(selection_costs(rows, arm)).values()
    return sum(amounts[measure] for amounts in totals for measure in measures)
