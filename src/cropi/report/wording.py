"""How the numbers of a run are said: the headline, and the cells of the summary table.

One place for the command line and the page, so that both say the same, whatever happened.
"""

from __future__ import annotations

from collections.abc import Sequence

from cropi.report.summary import ArmSummary

DASH = "\u2013"
"""Stands for a number that was not measured."""

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


def percent(value: float | None, digits: int = 1) -> str:
    """Say a share as a percentage; a dash for none."""
    return DASH if value is None else f"{100 * value:.{digits}f}%"


def amount(value: float | None) -> str:
    """Say a large number with three digits: 1.23M."""
    if value is None:
        return DASH
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # From 999,500 on, three digits round up to the next unit.
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Say a time span in the two largest units that matter."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def times(value: float | None) -> str:
    """Say a ratio: 3.0x; a dash for none."""
    return DASH if value is None else f"{value:.1f}x"


def change(start: float | None, end: float | None) -> str:
    """Say two accuracies: 43.0% → 62.1%; a dash for none."""
    return DASH if end is None else f"{percent(start)} → {percent(end)}"


def reached(row: ArmSummary) -> str:
    """Say when the arm reached the baseline's final accuracy: a step, never, or a dash for none."""
    if row.level is None or row.targeted_end is None:
        return DASH
    return "never" if row.steps_to_level is None else f"{row.steps_to_level:.0f}"


def cells(row: ArmSummary) -> tuple[str, ...]:
    """Return the summary as text, one cell for each of COLUMNS."""
    return (
        row.arm,
        str(row.steps),
        change(row.targeted_start, row.targeted_end),
        change(row.untargeted_start, row.untargeted_end),
        reached(row),
        times(row.acceleration),
        amount(row.tokens),
        duration(row.seconds),
    )


def headline(rows: Sequence[ArmSummary], baseline: str | None, planned: int | None = None) -> str:
    """Say in one sentence what happened, with the numbers as they are.

    `rows` starts with the main arm; `planned` is how many steps an arm was to take.
    """
    main = rows[0] if rows else None
    if main is None or main.targeted_end is None:
        return _unmeasured(main)
    other = next((r for r in rows if r.arm == baseline), None)
    if other is None or other.targeted_end is None:
        return _alone(main, baseline, planned)
    unfinished = [_progress(r, planned) for r in (main, other) if planned and r.steps < planned]
    return _compared(main, other) + (f" So far: {', '.join(unfinished)}." if unfinished else "")


def full_price(rows: Sequence[ArmSummary], baseline: str | None) -> str:
    """Say what reaching the level cost with rollouts and scoring paid, whomever it favours."""
    main = rows[0] if rows else None
    other = next((r for r in rows if r.arm == baseline), None)
    if main is None or other is None or not main.steps_to_level:
        return ""
    mine, theirs = _spent(main), _spent(other)
    if not mine or not theirs:
        return ""
    needed = f"Rollouts and scoring included, {main.arm} needed {mine} to reach that level"
    return f"{needed}; {other.arm} needed {theirs}."


def _spent(row: ArmSummary) -> str:
    tokens = "" if row.tokens_to_level is None else f"{amount(row.tokens_to_level)} tokens"
    seconds = "" if row.seconds_to_level is None else duration(row.seconds_to_level)
    return " and ".join(filter(None, [tokens, seconds]))


def _unmeasured(main: ArmSummary | None) -> str:
    if main is None:
        return "Nothing has been trained yet."
    if main.untargeted_end is not None:
        span = change(main.untargeted_start, main.untargeted_end)
        told = f"{main.arm}: {span} on untargeted sets after {main.steps} steps"
        return f"{told}; no targeted set was evaluated."
    if main.steps:
        return f"{main.arm} trained for {main.steps} steps; no accuracy was measured."
    return f"{main.arm} has not been evaluated yet."


def _alone(main: ArmSummary, baseline: str | None, planned: int | None) -> str:
    of = f" of {planned}" if planned and main.steps < planned else ""
    why = (
        f"{baseline} has not been evaluated yet"
        if baseline
        else "there is no baseline to compare with"
    )
    span = f"from {percent(main.targeted_start)} to {percent(main.targeted_end)}"
    took = f"{main.arm} took targeted accuracy {span} in {main.steps}{of} steps"
    return f"{took}; {why}."


def _progress(row: ArmSummary, planned: int | None) -> str:
    return f"{row.arm} has done {row.steps} of {planned} steps"


def _compared(main: ArmSummary, other: ArmSummary) -> str:
    level = f"{other.arm}'s final targeted accuracy ({percent(other.targeted_end)})"
    gap = 100 * ((other.targeted_end or 0) - (main.targeted_end or 0))
    if main.steps_to_level is None:
        return (
            f"{main.arm} did not reach {level}: it ended at {percent(main.targeted_end)} after "
            f"{main.steps} steps, {gap:.1f} points short."
        )
    if main.steps_to_level == 0:
        flat = f"{other.arm} ended no higher than the start ({percent(other.targeted_end)})"
        return f"{flat}; {_ended(main)}."
    first = f"{main.arm} reached {level} after {main.steps_to_level:.0f} of {other.steps} steps"
    ended = f"it ended at {percent(main.targeted_end)} after {main.steps}"
    return f"{first}: {_ratio(main)}; {ended}.{_caveat(other)}"


def _ended(main: ArmSummary) -> str:
    span = f"from {percent(main.targeted_start)} to {percent(main.targeted_end)}"
    return f"{main.arm} went {span} in {main.steps} steps"


def _ratio(main: ArmSummary) -> str:
    faster = main.acceleration or 1.0
    return "as many" if 0.95 < faster < 1.05 else " ".join(compared(faster))


def compared(ratio: float) -> tuple[str, str]:
    """Say the baseline's cost over the arm's: ("3.0x", "fewer") or ("1.5x", "more")."""
    return (times(ratio), "fewer") if ratio >= 1 else (times(1 / ratio), "more")


def _caveat(other: ArmSummary) -> str:
    """Say so when the baseline itself stood at its final accuracy well before its last step."""
    own = other.steps_to_level
    if own is None or own > 0.9 * other.steps:
        return ""
    return f" ({other.arm} itself first touched that level at step {own:.0f}.)"
