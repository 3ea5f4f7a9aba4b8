"""How a study is said: the headline, the lines of its table, and every number for study.json.

One place for the command line and the page, so that both say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cropi.report.wording import DASH, amount, duration, percent
from cropi.study import measures
from cropi.study.measures import ASKED_RATIO, LEVELS, MAIN_LEVEL, Axis, Estimate, Speed
from cropi.study.measuring import Comparison, Standing, Study
from cropi.study.reading import Cell

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

NEVER = "never"


def cells(study: Study) -> list[tuple[str, ...]]:
    """Return the table: for each strategy its text under COLUMNS, in the order of the plan."""
    return [_line(study, name) for name in study.files.strategies]


def _line(study: Study, name: str) -> tuple[str, ...]:
    own = study.standings.get(name)
    shown = f"{name} (baseline)" if name == study.baseline else name
    if own is None:
        return (shown, finished_seeds(study, name), *[DASH] * (len(COLUMNS) - 2))
    compared = name in study.comparisons
    return (
        shown,
        finished_seeds(study, name),
        percent(own.final.value),
        points(own.change),
        percent(own.area.value),
        steps_to(study.speed(name)),
        ratio(study.speed(name)) if compared else DASH,
        ratio(study.speed(name, "flops")) if compared else DASH,
        amount(own.costs["generated_tokens"] + own.costs["trained_tokens"]),
        duration(_known(own.costs["seconds"])),
    )


def finished_seeds(study: Study, name: str) -> str:
    """Say how many of a strategy's seeds are finished."""
    done = len(study.cells(name))
    planned = max(len(study.files.seeds), len(study.cells(name, finished=False)))
    return str(done) if done == planned else f"{done} of {planned}"


def points(change: Estimate | None, interval: bool = False) -> str:
    """Say a difference of accuracies in points, with its interval if asked: +1.2 [0.4, 2.0]."""
    if change is None:
        return DASH
    said = f"{100 * change.value:+.1f}"
    if not interval or change.low is None or change.high is None:
        return said
    return f"{said} [{100 * change.low:.1f}, {100 * change.high:.1f}]"


def share(value: Estimate | None) -> str:
    """Say an accuracy with its interval: 89.1% [88.0, 90.2]."""
    if value is None:
        return DASH
    if value.low is None or value.high is None:
        return percent(value.value)
    return f"{percent(value.value)} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def steps_to(found: Speed | None) -> str:
    """Say how many steps a strategy took to a level."""
    if found is None:
        return DASH
    return NEVER if found.strategy is None else f"{found.strategy:.0f}"


def times(value: float | None) -> str:
    """Say a ratio with the digits that one near 1 needs; 0 stands for never."""
    if value is None:
        return DASH
    if value == 0:
        return NEVER
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def ratio(found: Speed | None) -> str:
    """Say an acceleration with its interval: 2.31x [1.90, 2.80]."""
    if found is None:
        return DASH
    if found.low is None or found.high is None or found.high == 0:
        return times(found.ratio)
    low, high = (times(v).removesuffix("x") for v in (found.low, found.high))
    return f"{times(found.ratio)} [{low}, {high}]"


def fastest(study: Study) -> tuple[str, Speed] | None:
    """Return the strategy with the highest acceleration in steps at the main level.

    The oracle is a bound, no method that anyone could use.
    """
    found = [(name, study.speed(name)) for name in study.comparisons if name != "oracle"]
    known = [(name, s) for name, s in found if s is not None and s.ratio is not None]
    return max(known, key=lambda pair: pair[1].ratio or 0.0, default=None)


def headline(study: Study) -> str:
    """Say in one sentence what the study found, whomever it favours."""
    best = fastest(study)
    if best is None:
        return _nothing_to_say(study)
    name, found = best
    count = len(study.comparisons[name].seeds)
    level = f"{MAIN_LEVEL:.0%} of {study.baseline}'s gain ({percent(found.level)})"
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    others = len(study.comparisons.keys() - {"oracle"})
    if not found.ratio or found.strategy is None or found.baseline is None:
        return f"{'No strategy' if others > 1 else f'{name} never'} reached {level}, {seeds}."
    who = f"{name}, the fastest of {others} strategies," if others > 1 else name
    took = f"reached {level} in {found.strategy:.0f} steps instead of {found.baseline:.0f}"
    return f"{who} {took}: {compared(found, 'fewer')}, {seeds}{_price(study, name)}."


def compared(found: Speed, fewer: str) -> str:
    """Say a ratio as `fewer` (or less) or as more, with its interval the same way round."""
    value = found.ratio or 0.0
    ends = None if found.low is None or found.high is None else (found.low, found.high)
    if value >= 1:
        return f"{times(value)} {fewer}{_spread(ends)}"
    upside_down = ends and (1 / ends[1] if ends[1] else 0.0, 1 / ends[0] if ends[0] else 0.0)
    more = fewer.replace("fewer", "more").replace("less", "more")
    return f"{times(1 / value)} {more}{_spread(upside_down)}"


def _spread(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    low, high = (times(v).removesuffix("x") for v in ends)
    return f" (95% interval {low} to {high})"


def _price(study: Study, name: str) -> str:
    found = study.speed(name, "flops")
    if found is None or not found.ratio:
        return ""
    return f"; with selection paid for, {compared(found, 'less compute')}"


def _nothing_to_say(study: Study) -> str:
    done = sum(c.finished for c in study.files.cells)
    if not done:
        return "No cell of this study is finished yet."
    why = study.notes[0] if study.notes else "only the baseline has finished seeds"
    return f"There is nothing to compare yet: {why}."


def numbers(study: Study) -> dict[str, Any]:
    """Return everything as values for JSON; NaN and infinities are null, a ratio of 0 is never."""
    values = {
        "name": study.name,
        "headline": headline(study),
        "baseline": study.baseline,
        "seeds": study.files.seeds,
        "rules": RULES,
        "levels": {f"{f:.2f}": s.level for f, s in study.levels.items()},
        "strategies": {name: _strategy(study, name) for name in study.files.strategies},
        "missing": study.files.missing,
        "notes": list(study.notes),
    }
    return dict(_finite(values))


RULES = {
    "levels": list(LEVELS),
    "main_level": MAIN_LEVEL,
    "last_quarter": measures.LAST_QUARTER,
    "least_gain": measures.LEAST_GAIN,
    "resamples": measures.RESAMPLES,
    "bootstrap_seed": measures.BOOTSTRAP_SEED,
    "interval": "95% percentile bootstrap over seeds, paired with the baseline's",
}


def _strategy(study: Study, name: str) -> dict[str, Any]:
    own, compared = study.standings.get(name), study.comparisons.get(name)
    return {
        "baseline": name == study.baseline,
        "finished_seeds": [c.seed for c in study.cells(name)],
        "standing": _standing(own) if own else None,
        "compared": _comparison(compared) if compared else None,
        "seeds": [_seed(study, c) for c in study.cells(name, finished=False)],
    }


def _standing(own: Standing) -> dict[str, Any]:
    curves, others = own.curves, own.curves.untargeted
    return {
        "start": own.start,
        "final_targeted": vars(own.final),
        "area": vars(own.area),
        "final_untargeted": own.untargeted and vars(own.untargeted),
        "untargeted_change": own.change and vars(own.change),
        "costs": own.costs,
        "costs_by_phase": own.phases,
        "steps": curves.steps.tolist(),
        "targeted": curves.targeted.mean(axis=0).tolist(),
        "untargeted": None if others is None else others.mean(axis=0).tolist(),
        "flops": _mean_cost(own, "flops"),
        "seconds": _mean_cost(own, "seconds"),
    }


def _mean_cost(own: Standing, axis: Axis) -> list[float] | None:
    costs = own.curves.costs(axis)
    return None if costs is None else np.asarray(sum(costs)).mean(axis=0).tolist()


def _comparison(found: Comparison) -> dict[str, Any]:
    return {
        "seeds": list(found.seeds),
        "final_targeted": vars(found.final),
        "area": vars(found.area),
        "final_untargeted": found.untargeted and vars(found.untargeted),
        "accelerations": [vars(found.speeds[a, f]) for a, f in found.speeds],
        "break_even": [
            vars(even) | {"acceleration": even.at(even.measured), "at_5": even.at(ASKED_RATIO)}
            for even in found.break_even.values()
        ],
    }


def _seed(study: Study, cell: Cell) -> dict[str, Any]:
    spent = cell.spent
    last = {m: float(spent.total(m)[-1]) for m in spent.training} if len(cell.steps) else {}
    return {
        "seed": cell.seed,
        "finished": cell.finished,
        "steps": int(cell.steps[-1]) if len(cell.steps) else 0,
        **seed_values(study, cell),
        "costs": last,
        "pool": cell.selected.pool,
        "pool_pass_rate": cell.selected.pool_pass_rate,
        "selected": [vars(choice) for choice in cell.selected.choices],
    }


def seed_values(study: Study, cell: Cell) -> dict[str, float | None]:
    """Return one seed's start, ends, area, and its own step to the main level; None: unmeasured.

    The level is the mean baseline's, so that seeds are comparable; None for "steps_to_level" may
    also mean never.
    """
    if len(cell.steps) < 2:
        names = ("start", "final_targeted", "final_untargeted", "area", "steps_to_level")
        return dict.fromkeys(names)
    found = study.speed(cell.strategy)
    goal = None
    if found is not None and cell.finished:
        curves = study.standings[cell.strategy].curves.of((cell.seed,))
        goal = measures.seed_steps(curves, found.level)[0]
    return {
        "start": float(cell.targeted[0]),
        "final_targeted": float(cell.targeted[-1]),
        "final_untargeted": _known(float(cell.untargeted[-1])),
        "area": float(measures.area(cell.steps.astype(np.float64), cell.targeted)),
        "steps_to_level": goal,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return _known(value) if isinstance(value, float) else value
