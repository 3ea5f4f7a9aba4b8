"""A study in words: its headline and the lines of its table.

One place for the command line and the page, so that both say the same.
"""

from __future__ import annotations

from cropi.report.kit.number_format import (
    DASH,
    NEVER,
    amount,
    duration,
    percent,
    points,
    ratio,
    ratio_interval,
)
from cropi.study.comparison import Study
from cropi.study.measures import MAIN_LEVEL, Acceleration

COLUMNS = (
    "strategy",
    "seeds",
    "targeted",
    "untargeted",
    "area",
    f"steps to {MAIN_LEVEL:.0%}",
    "acceleration",
    "in compute",
    "tokens",
    "time",
)
"""Headings of the table: final targeted accuracy, change of untargeted accuracy in points, mean
targeted accuracy over training, steps to the main level, accelerations with 95% intervals, tokens
and seconds of a seed with selection paid for."""
BOUND = "oracle"
"""The strategy that is told where the targets are: a bound, not a method anyone could use."""


def table_rows(study: Study) -> list[tuple[str, ...]]:
    """Return the table: for each strategy its text under COLUMNS, in the order of the plan."""
    return [_table_row(study, name) for name in study.files.strategies]


def _table_row(study: Study, name: str) -> tuple[str, ...]:
    result = study.strategies.get(name)
    shown = f"{name} (baseline)" if name == study.baseline else name
    if result is None:
        return (shown, finished_seeds(study, name), *[DASH] * (len(COLUMNS) - 2))
    compared = name in study.comparisons
    return (
        shown,
        finished_seeds(study, name),
        percent(result.final.mean),
        points(result.change),
        percent(result.area.mean),
        steps_to_level(study.acceleration(name)),
        acceleration(study.acceleration(name)) if compared else DASH,
        acceleration(study.acceleration(name, "flops")) if compared else DASH,
        amount(result.costs["generated_tokens"] + result.costs["trained_tokens"]),
        duration(result.costs["seconds"]),
    )


def finished_seeds(study: Study, name: str) -> str:
    """Say how many of a strategy's seeds are finished."""
    done = len(study.runs(name))
    planned = max(len(study.files.seeds), len(study.runs(name, finished=False)))
    return str(done) if done == planned else f"{done} of {planned}"


def steps_to_level(gain: Acceleration | None) -> str:
    """Say how many steps a strategy took to a level."""
    if gain is None:
        return DASH
    return NEVER if gain.strategy is None else f"{gain.strategy:.0f}"


def acceleration(gain: Acceleration | None) -> str:
    """Format an acceleration with its interval: 2.31x [1.90, 2.80]."""
    return DASH if gain is None else ratio_interval(gain.ratio, gain.low, gain.high)


def fastest(study: Study) -> tuple[str, Acceleration] | None:
    """Return the strategy with the highest acceleration in steps at the main level."""
    pairs = [(name, study.acceleration(name)) for name in study.comparisons if name != BOUND]
    measured = [(name, a) for name, a in pairs if a is not None and a.ratio is not None]
    return max(measured, key=lambda pair: pair[1].ratio or 0.0, default=None)


def headline(study: Study) -> str:
    """Say in one sentence what the study found, whichever strategy it favours."""
    best = fastest(study)
    if best is None:
        return _nothing_compared(study)
    name, gain = best
    count = len(study.comparisons[name].seeds)
    level = f"{MAIN_LEVEL:.0%} of {study.baseline}'s gain ({percent(gain.level)})"
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    others = len(study.comparisons.keys() - {BOUND})
    if not gain.ratio or gain.strategy is None or gain.baseline is None:
        return f"{'No strategy' if others > 1 else f'{name} never'} reached {level}, {seeds}."
    who = f"{name}, the fastest of {others} strategies," if others > 1 else name
    took = f"reached {level} in {gain.strategy:.0f} steps instead of {gain.baseline:.0f}"
    return f"{who} {took}: {compared(gain, 'fewer')}, {seeds}{_in_compute(study, name)}."


def compared(gain: Acceleration, fewer: str) -> str:
    """Say a ratio as `fewer` (or less) or as more, with its interval in the same direction."""
    value = gain.ratio or 0.0
    ends = None if gain.low is None or gain.high is None else (gain.low, gain.high)
    if value >= 1:
        return f"{ratio(value)} {fewer}{_interval(ends)}"
    inverse = ends and (1 / ends[1] if ends[1] else 0.0, 1 / ends[0] if ends[0] else 0.0)
    more = fewer.replace("fewer", "more").replace("less", "more")
    return f"{ratio(1 / value)} {more}{_interval(inverse)}"


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    low, high = (ratio(v).removesuffix("x") for v in ends)
    return f" (95% interval {low} to {high})"


def _in_compute(study: Study, name: str) -> str:
    gain = study.acceleration(name, "flops")
    if gain is None or not gain.ratio:
        return ""
    return f"; with selection paid for, {compared(gain, 'less compute')}"


def _nothing_compared(study: Study) -> str:
    if not any(run.finished for run in study.files.runs):
        return "No run of this study is finished yet."
    why = study.notes[0] if study.notes else "only the baseline has finished seeds"
    return f"There is nothing to compare yet: {why}."
