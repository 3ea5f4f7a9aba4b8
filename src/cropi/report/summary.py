"""One line an arm: what the command line prints at the end of a run and the page shows on top."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cropi.report.numbers import (
    AXES,
    Axis,
    Point,
    Row,
    arm_curve,
    baseline_of,
    evaluated_sets,
    first_reached,
    of_kind,
    paid_before,
    points,
    training_clock,
)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One line of the table at the end of a run. None: not measured, or never reached.

    `level` is the baseline's final targeted accuracy; `steps_to_level`, `tokens_to_level` and
    `seconds_to_level` are where this arm first reached it. `acceleration` is the baseline's steps
    divided by `steps_to_level`; None for the baseline itself.
    """

    arm: str
    steps: int
    targeted_start: float | None
    targeted_end: float | None
    targeted_error: float | None
    untargeted_start: float | None
    untargeted_end: float | None
    level: float | None
    steps_to_level: float | None
    tokens_to_level: float | None
    seconds_to_level: float | None
    acceleration: float | None
    tokens: float | None
    seconds: float | None


def summarise(
    metrics: Sequence[Row], timings: Sequence[Row], arms: Sequence[str], main: str
) -> list[ArmSummary]:
    """Return one line an arm, the main arm first, against the baseline's final accuracy."""
    baseline = baseline_of(arms, main)
    target = points(metrics, baseline, evaluated_sets(metrics, True)) if baseline else []
    goal = target[-1] if target else None
    ordered = [main, *(a for a in arms if a != main)]
    return [_summarise_arm(metrics, timings, arm, goal, arm == baseline) for arm in ordered]


def _summarise_arm(
    metrics: Sequence[Row], timings: Sequence[Row], arm: str, goal: Point | None, is_baseline: bool
) -> ArmSummary:
    targeted = points(metrics, arm, evaluated_sets(metrics, True))
    untargeted = points(metrics, arm, evaluated_sets(metrics, False))
    curves = {a: arm_curve(metrics, timings, arm, evaluated_sets(metrics, True), a) for a in AXES}
    level = goal.accuracy if goal else None
    reached = {
        a: first_reached(c.x, c.y, level) if c and level is not None else None
        for a, c in curves.items()
    }
    steps_to = reached["steps"]
    faster = goal.step / steps_to if goal and steps_to and not is_baseline else None
    start, end, error = _ends(targeted)
    other_start, other_end, _ = _ends(untargeted)
    return ArmSummary(
        arm=arm,
        steps=_steps_of(metrics, arm),
        targeted_start=start,
        targeted_end=end,
        targeted_error=error,
        untargeted_start=other_start,
        untargeted_end=other_end,
        level=level,
        steps_to_level=steps_to,
        tokens_to_level=reached["tokens"],
        seconds_to_level=reached["seconds"],
        acceleration=faster,
        tokens=_total(metrics, timings, arm, "tokens"),
        seconds=_total(metrics, timings, arm, "seconds"),
    )


def _ends(curve: Sequence[Point]) -> tuple[float | None, float | None, float | None]:
    if not curve:
        return None, None, None
    return curve[0].accuracy, curve[-1].accuracy, curve[-1].error


def _steps_of(metrics: Iterable[Row], arm: str) -> int:
    rows = [r for r in metrics if r.get("kind") in ("evaluation", "train") and r.get("arm") == arm]
    return max((int(r.get("step") or 0) for r in rows), default=0)


def _total(metrics: Sequence[Row], timings: Sequence[Row], arm: str, axis: Axis) -> float | None:
    """Return all the arm used up to its last evaluation, or up to its last clock row."""
    bill = sum(paid_before(metrics, timings, arm, axis).values())
    if axis == "seconds":
        _, seconds = training_clock(timings, arm)
        return bill + seconds[-1] if seconds else None
    rows = of_kind(metrics, "evaluation", arm)
    used = [int(r.get("generated_tokens") or 0) + int(r.get("trained_tokens") or 0) for r in rows]
    return bill + max(used) if used else None
