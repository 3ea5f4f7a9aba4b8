"""The bar: what the method was asked to reach, before the study was run, and what it reached.

Where a target names an interval, its worse end must reach the target; elsewhere the mean must.
How often curves are evaluated was not asked for. So the accelerations are judged a second time, as
half the evaluations alone would have shown them; these rows were added later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cropi.report.data.study_summary import acceleration
from cropi.report.kit.number_format import DASH, points, ratio
from cropi.study.measures import REPORTED_COST_RATIO, TOLERANCE, Axis
from study_report.results import Regime, Results

HARD = ("noisy_answers", "noisy_verdicts", "low_utility")
"""Regimes in which choosing well should also end higher."""
ORACLE = "oracle"
"""Is told where the targets' own prompts are: a bound, not a baseline."""
RANDOM = "random"

NOT_RUN = "not run yet"
SO_FAR = " so far"


@dataclass(frozen=True)
class Judged:
    """What was measured in a regime, as text; `met` is None where it cannot be decided."""

    measured: str
    met: bool | None


Judge = Callable[[Regime], Judged]


@dataclass(frozen=True)
class Target:
    """What is asked, of which regimes (None: of all), and how it is judged."""

    asked: str
    regimes: tuple[str, ...] | None
    judge: Judge

    def asks(self, regime: str) -> bool:
        """Whether the target is about this regime."""
        return self.regimes is None or regime in self.regimes


@dataclass(frozen=True)
class Row:
    """One target in one regime."""

    asked: str
    regime: str
    measured: str
    verdict: str


def _at_least(value: float | None, least: float, measured: str) -> Judged:
    return Judged(measured, None if value is None else value >= least - TOLERANCE)


def acceleration_of(axis: Axis, least: float, coarsely: bool = False) -> Judge:
    """Judge the acceleration at the main level, or what half the evaluations would show of it."""

    def judge(regime: Regime) -> Judged:
        read = regime.coarse_acceleration if coarsely else regime.acceleration
        measured = read(regime.method, axis)
        value = measured.ratio if measured else None
        return _at_least(value, least, acceleration(measured))

    return judge


def lower_end(least: float) -> Judge:
    """Judge the acceleration in steps by the lower end of its interval."""

    def judge(regime: Regime) -> Judged:
        measured = regime.acceleration(regime.method)
        low = measured.low if measured else None
        return _at_least(low, least, ratio(low))

    return judge


def pays(regime: Regime) -> Judged:
    """Judge whether training cost enough, compared with selection, for selection to pay."""
    point = regime.break_even(regime.method)
    if not point:
        return _unreached(regime)
    needed, measured = point["break_even"], point["measured"]
    if needed is None:
        return Judged("at no price", False)
    return Judged(f"{measured:.2f}, break-even {needed:.2f}", measured >= needed)


def at_asked_ratio(least: float) -> Judge:
    """Judge the compute acceleration if training cost REPORTED_COST_RATIO times its selection."""

    def judge(regime: Regime) -> Judged:
        point = regime.break_even(regime.method)
        if not point:
            return _unreached(regime)
        return _at_least(point["at_asked_ratio"], least, ratio(point["at_asked_ratio"]))

    return judge


def _unreached(regime: Regime) -> Judged:
    """Without a break-even: a method that never reaches the level misses it, else it is open."""
    measured = regime.acceleration(regime.method, "flops")
    return Judged(ratio(measured.ratio if measured else None), False if measured else None)


def close_to_baseline(regime: Regime) -> Judged:
    """Judge whether the final accuracy is at most a point below the baseline's."""
    gap = regime.gap(regime.method, "final")
    return _at_least(gap.low if gap else None, -0.01, points(gap, interval=True))


def above_baseline(regime: Regime) -> Judged:
    """Judge whether the final accuracy is above the baseline's by its whole interval."""
    gap = regime.gap(regime.method, "final")
    low = gap.low if gap else None
    return Judged(points(gap, interval=True), None if low is None else low > 0)


def highest_area(regime: Regime) -> Judged:
    """Judge the area against that of the best other strategy."""
    gaps = {name: regime.ahead(name, "area") for name in regime.strategies if name != ORACLE}
    measured = {name: gap for name, gap in gaps.items() if gap is not None}
    if not measured:
        return Judged(DASH, None)
    nearest = min(measured, key=lambda name: measured[name].mean)
    words = f"{points(measured[nearest], interval=True)} over {nearest}"
    return Judged(words, measured[nearest].mean > 0)


def not_below_random(regime: Regime) -> Judged:
    """Judge area and final accuracy against a random selection's."""
    area, final = (regime.ahead(RANDOM, measure) for measure in ("area", "final"))
    if area is None or final is None:
        return Judged(DASH, None)
    words = f"area {points(area)}, final {points(final)}"
    return Judged(words, min(area.mean, final.mean) >= 0)


def keeps_the_rest(regime: Regime) -> Judged:
    """Judge the change of untargeted accuracy since the start."""
    change = regime.estimate(regime.method, "change")
    return _at_least(change.mean if change else None, -0.02, points(change, interval=True))


CLEAN = ("clean",)
COARSELY = "if evaluated half as often"
TARGETS = (
    Target("steps: at least 4x fewer", CLEAN, acceleration_of("steps", 4.0)),
    Target(f"steps: at least 4x fewer {COARSELY}", CLEAN, acceleration_of("steps", 4.0, True)),
    Target("steps: lower end of the interval at least 2.66x", CLEAN, lower_end(2.66)),
    Target("compute: at least 1.3x less", CLEAN, acceleration_of("flops", 1.3)),
    Target(f"compute: at least 1.3x less {COARSELY}", CLEAN, acceleration_of("flops", 1.3, True)),
    Target("compute: training over selection cost at or above break-even", CLEAN, pays),
    Target(
        f"compute: at least 2x less if training cost {REPORTED_COST_RATIO:.0f} times its selection",
        CLEAN,
        at_asked_ratio(2.0),
    ),
    Target("steps: at least 3x fewer", HARD, acceleration_of("steps", 3.0)),
    Target(f"steps: at least 3x fewer {COARSELY}", HARD, acceleration_of("steps", 3.0, True)),
    Target("final targeted accuracy above full's, by the interval", HARD, above_baseline),
    Target("final targeted at most 1 point below full's, by the interval", None, close_to_baseline),
    Target("highest area of all but the oracle", None, highest_area),
    Target("not below random", None, not_below_random),
    Target("untargeted accuracy at most 2 points below the start", None, keeps_the_rest),
)


def judged(target: Target, regime: Regime) -> Row:
    """Judge one target in one regime; what may still change is marked "so far"."""
    if regime.method not in regime.strategies:
        return Row(target.asked, regime.name, DASH, NOT_RUN)
    judgement = target.judge(regime)
    verdict = "open" if judgement.met is None else "yes" if judgement.met else "no"
    so_far = SO_FAR if regime.missing and judgement.met is not None else ""
    return Row(target.asked, regime.name, judgement.measured, verdict + so_far)


def rows_of(results: Results) -> list[Row]:
    """Return every target in every regime that it is about."""
    return [
        judged(target, regime)
        for target in TARGETS
        for regime in results.regimes.values()
        if target.asks(regime.name)
    ]
