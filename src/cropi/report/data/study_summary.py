"""A study in words: its headline and the lines of its table.

One place for the command line and the page, so that both say the same.
"""

from __future__ import annotations

from cropi.estimation.intervals import Interval
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
from cropi.study.comparison import ORACLE, Study
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


def oracle_share(share: Interval | None) -> str:
    """Format a share of the oracle's advantage: 0.83 [0.61, 1.02], or without an interval."""
    if share is None or share.mean != share.mean:
        return DASH
    if share.low is None or share.high is None:
        return f"{share.mean:z.2f}"
    return f"{share.mean:z.2f} [{share.low:z.2f}, {share.high:z.2f}]"


def fastest(study: Study) -> tuple[str, Acceleration] | None:
    """Return the strategy with the highest acceleration in steps at the main level."""
    pairs = [(name, study.acceleration(name)) for name in study.comparisons if name != ORACLE]
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
    others = len(study.comparisons.keys() - {ORACLE})
    if not gain.ratio or gain.strategy is None or gain.baseline is None:
        return f"{'No strategy' if others > 1 else f'{name} never'} reached {level}, {seeds}."
    who = f"{name}, the fastest of {others} strategies," if others > 1 else name
    took = f"reached {level} in {gain.strategy:.0f} steps instead of {gain.baseline:.0f}"
    return f"{who} {took}: {compared(gain, 'fewer')}, {seeds}{_in_compute(study, name)}."


def compared(gain: Acceleration, fewer: str) -> str:
    """Say a ratio as `fewer` (or less) or as more, with its interval in the same direction."""
    value, low, high = gain.ratio or 0.0, gain.low, gain.high
    if value >= 1:
        return f"{ratio(value)} {fewer}{_interval(low, high)}"
    more = fewer.replace("fewer", "more").replace("less", "more")
    inverse = (1 / high if high else 0.0, 1 / low if low else 0.0)
    return f"{ratio(1 / value)} {more}{_interval(*inverse) if low is not None else ''}"


def _interval(low: float | None, high: float | None) -> str:
    """An interval in words; a high end of 0 is never, None is no end at all."""
    if low is None:
        return ""
    ends = ratio(low), "no upper end" if high is None else ratio(high)
    return f" (95% interval {' to '.join(end.removesuffix('x') for end in ends)})"


def _in_compute(study: Study, name: str) -> str:
    gain = study.acceleration(name, "flops")
    if gain is None or not gain.ratio:
        return ""
    return f"; with selection paid for, {compared(gain, 'less compute')}"


def _nothing_compared(study: Study) -> str:
    if not any(run.finished for run in study.files.runs):
        return "No run of this study is finished yet."
    if not study.notes:
        return "There is nothing to compare yet: only the baseline has finished seeds."
    return f"No acceleration can be measured: {study.notes[0]}.{_ended(study)}"


def _ended(study: Study) -> str:
    """Where the strategy of highest final accuracy ended, against the baseline."""
    finals = {name: each.final for name, each in study.comparisons.items() if name != ORACLE}
    if not finals:
        return ""
    name = max(finals, key=lambda each: finals[each].mean)
    final = finals[name]
    if final.mean <= 0:
        return f" No strategy ended above {study.baseline}."
    interval = f" (95% interval ± {100 * final.half:.1f})" if final.half else ""
    return f" {name} ended {100 * final.mean:+z.1f} points from {study.baseline}{interval}."


def further_notes(study: Study) -> list[str]:
    """What a reader should know beside the headline, and which runs are missing."""
    sentence = headline(study)
    return [*(note for note in study.notes if note not in sentence), *study.files.missing]
