"""One line per arm, and the headline: what the terminal prints and the page shows on top.

One place for the command line and the page, so that both say the same, whatever happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropi.report.data.run_curves import (
    AXES,
    Axis,
    arm_curve,
    first_reached,
    total_seconds,
    total_tokens,
)
from cropi.report.kit.number_format import (
    DASH,
    NEVER,
    amount,
    change,
    duration,
    percent,
    ratio,
)
from cropi.store.metrics import EvaluationRow, TrainRow
from cropi.study.accuracy import AccuracyPoint, RunRows, accuracy_points, evaluated_sets

COLUMNS = (
    "arm",
    "steps",
    "targeted",
    "untargeted",
    "steps to level",
    "acceleration",
    "tokens",
    "time",
)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One line of the table at the end of a run. None: not measured, or never reached.

    `level` is the baseline's final targeted accuracy; `to_level` says where this arm first reached
    it, on each axis. `acceleration` is the baseline's steps divided by this arm's steps to the
    level; None for the baseline itself.
    """

    arm: str
    steps: int
    targeted_start: float | None
    targeted_end: float | None
    targeted_error: float | None
    untargeted_start: float | None
    untargeted_end: float | None
    level: float | None
    to_level: dict[Axis, float | None]
    acceleration: float | None
    tokens: float | None
    seconds: float | None

    @property
    def steps_to_level(self) -> float | None:
        """Optimizer steps after which the level was first reached."""
        return self.to_level["steps"]


def baseline_of(arms: Sequence[str], main: str) -> str | None:
    """Return the arm that `main` is compared with: full data if it is there, else the first."""
    others = [a for a in arms if a != main]
    return "full" if "full" in others else next(iter(others), None)


def summarise(rows: RunRows, arms: Sequence[str], main: str) -> list[ArmSummary]:
    """Return one line per arm, the main arm first, against the baseline's final accuracy."""
    baseline = baseline_of(arms, main)
    points = accuracy_points(rows, baseline, evaluated_sets(rows, True)) if baseline else []
    goal = points[-1] if points else None
    ordered = [main, *(a for a in arms if a != main)]
    return [_summarise_arm(rows, arm, goal, arm == baseline) for arm in ordered]


def _summarise_arm(
    rows: RunRows, arm: str, goal: AccuracyPoint | None, is_baseline: bool
) -> ArmSummary:
    sets = evaluated_sets(rows, True)
    targeted = accuracy_points(rows, arm, sets)
    untargeted = accuracy_points(rows, arm, evaluated_sets(rows, False))
    to_level = {
        axis: first_reached(arm_curve(rows, arm, sets, axis), goal.accuracy) if goal else None
        for axis in AXES
    }
    steps = to_level["steps"]
    return ArmSummary(
        arm=arm,
        steps=_last_step(rows, arm),
        targeted_start=targeted[0].accuracy if targeted else None,
        targeted_end=targeted[-1].accuracy if targeted else None,
        targeted_error=targeted[-1].error if targeted else None,
        untargeted_start=untargeted[0].accuracy if untargeted else None,
        untargeted_end=untargeted[-1].accuracy if untargeted else None,
        level=goal.accuracy if goal else None,
        to_level=to_level,
        acceleration=goal.step / steps if goal and steps and not is_baseline else None,
        tokens=total_tokens(rows, arm),
        seconds=total_seconds(rows, arm),
    )


def _last_step(rows: RunRows, arm: str) -> int:
    evaluated = [row.step for row in rows.of_kind(EvaluationRow, arm)]
    return max([*evaluated, *(row.step for row in rows.of_kind(TrainRow, arm))], default=0)


def table_row(summary: ArmSummary) -> tuple[str, ...]:
    """Return the summary as text, one cell for each of COLUMNS."""
    return (
        summary.arm,
        str(summary.steps),
        change(summary.targeted_start, summary.targeted_end),
        change(summary.untargeted_start, summary.untargeted_end),
        _reached(summary),
        ratio(summary.acceleration),
        amount(summary.tokens),
        duration(summary.seconds),
    )


def _reached(summary: ArmSummary) -> str:
    """When the arm reached the baseline's final accuracy: a step, never, or a dash."""
    if summary.level is None or summary.targeted_end is None:
        return DASH
    return NEVER if summary.steps_to_level is None else f"{summary.steps_to_level:.0f}"


def headline(rows: Sequence[ArmSummary], baseline: str | None, planned: int | None = None) -> str:
    """Say in one sentence what happened, with the numbers as they are.

    `rows` starts with the main arm; `planned` is how many steps an arm was to take.
    """
    main = rows[0] if rows else None
    if main is None or main.targeted_end is None:
        return _unmeasured(main)
    other = next((r for r in rows if r.arm == baseline), None)
    if other is None or other.targeted_end is None:
        return _without_baseline(main, baseline, planned)
    unfinished = [_progress(r, planned) for r in (main, other) if planned and r.steps < planned]
    return _compared(main, other) + (f" So far: {', '.join(unfinished)}." if unfinished else "")


def full_cost(rows: Sequence[ArmSummary], baseline: str | None) -> str:
    """Say what reaching the level cost with rollouts and scoring paid, whichever arm it favours."""
    main = rows[0] if rows else None
    other = next((r for r in rows if r.arm == baseline), None)
    if main is None or other is None or not main.steps_to_level:
        return ""
    main_cost, other_cost = _cost_to_level(main), _cost_to_level(other)
    if not main_cost or not other_cost:
        return ""
    needed = f"Rollouts and scoring included, {main.arm} needed {main_cost} to reach that level"
    return f"{needed}; {other.arm} needed {other_cost}."


def fewer_or_more(value: float) -> tuple[str, str]:
    """Say the baseline's cost over the arm's: ("3.00x", "fewer") or ("1.50x", "more")."""
    return (ratio(value), "fewer") if value >= 1 else (ratio(1 / value), "more")


def _cost_to_level(row: ArmSummary) -> str:
    tokens, seconds = row.to_level["tokens"], row.to_level["seconds"]
    parts = [
        "" if tokens is None else f"{amount(tokens)} tokens",
        "" if seconds is None else duration(seconds),
    ]
    return " and ".join(filter(None, parts))


def _unmeasured(main: ArmSummary | None) -> str:
    if main is None:
        return "Nothing has been trained yet."
    if main.untargeted_end is not None:
        span = change(main.untargeted_start, main.untargeted_end)
        result = f"{main.arm}: {span} on untargeted sets after {main.steps} steps"
        return f"{result}; no targeted set was evaluated."
    if main.steps:
        return f"{main.arm} trained for {main.steps} steps; no accuracy was measured."
    return f"{main.arm} has not been evaluated yet."


def _without_baseline(main: ArmSummary, baseline: str | None, planned: int | None) -> str:
    of = f" of {planned}" if planned and main.steps < planned else ""
    why = (
        f"{baseline} has not been evaluated yet"
        if baseline
        else "there is no baseline to compare with"
    )
    span = f"from {percent(main.targeted_start)} to {percent(main.targeted_end)}"
    doubt = _within_error(main)
    return f"{main.arm} took targeted accuracy {span} in {main.steps}{of} steps{doubt}; {why}."


def _within_error(main: ArmSummary) -> str:
    """Say it where an arm's change is smaller than the standard error of its last accuracy."""
    start, end, error = main.targeted_start, main.targeted_end, main.targeted_error
    if start is None or end is None or error is None or not 0 < abs(end - start) < error:
        return ""
    return f", less than the test's standard error of {100 * error:.1f} points"


def _progress(row: ArmSummary, planned: int | None) -> str:
    return f"{row.arm} has done {row.steps} of {planned} steps"


def _compared(main: ArmSummary, other: ArmSummary) -> str:
    level = f"{other.arm}'s final targeted accuracy ({percent(other.targeted_end)})"
    gap = 100 * ((other.targeted_end or 0) - (main.targeted_end or 0))
    if main.steps_to_level is None:
        return (
            f"{main.arm} did not reach {level}: it ended at {percent(main.targeted_end)} after "
            f"{main.steps} steps, {gap:z.1f} points short."
        )
    if main.steps_to_level == 0:
        span = f"from {percent(main.targeted_start)} to {percent(main.targeted_end)}"
        ended = f"{other.arm} ended no higher than the start ({percent(other.targeted_end)})"
        return f"{ended}; {main.arm} went {span} in {main.steps} steps."
    first = f"{main.arm} reached {level} after {main.steps_to_level:.0f} of {other.steps} steps"
    ended = f"it ended at {percent(main.targeted_end)} after {main.steps}"
    return f"{first}: {_acceleration(main)}; {ended}.{_caveat(other)}"


def _acceleration(main: ArmSummary) -> str:
    faster = main.acceleration or 1.0
    return "as many" if 0.95 < faster < 1.05 else " ".join(fewer_or_more(faster))


def _caveat(other: ArmSummary) -> str:
    """Say so when the baseline itself was at its final accuracy well before its last step."""
    steps = other.steps_to_level
    if steps is None or steps > 0.9 * other.steps:
        return ""
    return f" ({other.arm} itself first touched that level at step {steps:.0f}.)"
