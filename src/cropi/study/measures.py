"""The measures of a study, as pure functions of NumPy arrays. All rules are fixed here.

Legend: S seeds, T evaluations, K knots of a curve, R resamples; accuracies are shares in [0, 1].

**Curve.** Accuracy of a strategy at the evaluation steps that all its seeds share: the mean over
sets per seed, then the mean over seeds, straight lines in between. Nothing else is smoothed.

**Level.** With b(t) the baseline's mean curve and T its last step,

    level(f) = b(0) + f * (mean of b(t) over evaluations with t >= 3/4 T  -  b(0)),  f in LEVELS.

The mean over the last quarter is where the baseline ends, with less noise than one evaluation has.
It is at most the highest of them, so that the mean curve always reaches its levels. A baseline that
gains less than LEAST_GAIN has no meaningful level: no ratio is given.

**Steps to a level.** Where a seed's own curve first crosses it, by linear interpolation; of several
seeds, the geometric mean.

**Acceleration** = the baseline's steps to the level / the strategy's: the geometric mean of the
seeds' ratios, with Student's 95% interval of their logs. Seeds are paired, since they share start
policy, prompts and rollouts. A seed that never reaches the level is censored: it counts as if it
reached it at its last evaluation, is counted and shown, and opens the interval. If the strategy's
seed never does, the ratio is at most that, and the interval begins at 0; if the baseline's never
does, it is at least that, and the interval has no upper end. If neither does, the seed says nothing
and has no ratio. A strategy of which half the seeds or more never reach the level has ratio 0,
which is shown as "never".

**Compute acceleration** is the same ratio on the axis of FLOPs, and likewise of seconds: x is what
had been paid at each evaluation, selection included. What a stage's selection costs is paid before
the stage's first step: there the curve is flat (`cost_accuracy_curve`).

**Area** = area under the targeted curve by the trapezoid rule, over the number of steps: the mean
accuracy during training.

**Share of the oracle's advantage** = (area of the strategy - area of the baseline) / (area of
`oracle` - area of the baseline), means over the seeds that all three share; Fieller's interval. It
has no value where several seeds cannot tell the oracle's advantage from none.

**Intervals** of means and differences over seeds are Student's. One seed has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.estimation.intervals import (
    Interval,
    geometric_interval,
    ratio_of_means,
    t_quantile,
)
from cropi.short_repr import ShortRepr

Array = NDArray[np.float64]
Axis = Literal["steps", "flops", "seconds"]

AXES: tuple[Axis, ...] = ("steps", "flops", "seconds")
LEVELS = (0.80, 0.90, 0.95)
MAIN_LEVEL = 0.95
LAST_QUARTER = 0.75
LEAST_GAIN = 0.02
TOLERANCE = 1e-9
"""Accuracies are means of rates: a level counts as reached within rounding."""


@dataclass(frozen=True, repr=False)
class Curves(ShortRepr):
    """One strategy's finished seeds at the T evaluation steps that all of them share.

    `steps` is `(T,)`, from 0; `targeted` and `untargeted` are `(S, T)`, `untargeted` None where
    none was measured. `training` and `selection` hold `(S, T)` under "flops" and "seconds": what
    training alone had cost, and what selection had; an axis is absent where it was not measured.
    """

    seeds: tuple[int, ...]
    steps: Array
    targeted: Array
    untargeted: Array | None
    training: Mapping[Axis, Array]
    selection: Mapping[Axis, Array]

    def for_seeds(self, seeds: tuple[int, ...]) -> Curves:
        """The same curves of these seeds only, in their order."""
        rows = [self.seeds.index(s) for s in seeds]
        return replace(self._each(lambda values: values[rows]), seeds=seeds)

    def every(self, count: int) -> Curves:
        """The same curves as if only every `count`-th evaluation, and the last, had been made."""
        last = len(self.steps) - 1
        places = np.unique([*range(0, last, count), last])
        return replace(self._each(lambda values: values[:, places]), steps=self.steps[places])

    def _each(self, change: Callable[[Array], Array]) -> Curves:
        """The same curves with every `(S, T)` array changed."""
        return replace(
            self,
            targeted=change(self.targeted),
            untargeted=None if self.untargeted is None else change(self.untargeted),
            training={axis: change(cost) for axis, cost in self.training.items()},
            selection={axis: change(cost) for axis, cost in self.selection.items()},
        )

    def costs(self, axis: Axis) -> tuple[Array, Array] | None:
        """Training's and selection's cost on an axis, both `(S, T)`; None if unmeasured."""
        if axis == "steps":
            steps = np.broadcast_to(self.steps, self.targeted.shape)
            return np.asarray(steps, dtype=np.float64), np.zeros(self.targeted.shape)
        if axis not in self.training:
            return None
        return self.training[axis], self.selection[axis]


@dataclass(frozen=True)
class Acceleration:
    """How soon a strategy reaches a level, against the baseline, on one axis.

    `baseline` and `strategy` are the axis' amounts up to the level, geometric means over seeds;
    `strategy` is None if half of its seeds or more never reach it. `ratio` is
    `baseline / strategy`, 0 for never, None where it has no meaning (a strategy that starts at the
    level). `high` is None beside a `low` where a seed of the
    baseline never reaches the level: no upper end. Of the `seeds`,
    `never` are those of the strategy that do not reach it, and `undefined` have no ratio.
    """

    share: float
    level: float
    axis: Axis
    baseline: float | None
    strategy: float | None
    ratio: float | None
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    never: int = 0
    undefined: int = 0


def band(values: Array) -> tuple[Array, Array] | None:
    """Return the 95% interval of the mean of `(S, T)` at every evaluation; None for one seed."""
    count = len(values)
    if count < 2:
        return None
    half = t_quantile(count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    mean = values.mean(axis=0)
    return mean - half, mean + half


def area(steps: Array, curve: Array) -> Array:
    """Return the area under curves `(..., T)` over the number of steps: mean accuracy `(...)`.

    Over no steps at all it is the last accuracy.
    """
    span = float(steps[-1] - steps[0])
    if span == 0:
        return np.asarray(curve[..., -1], dtype=np.float64)
    return np.asarray(np.trapezoid(curve, steps, axis=-1) / span, dtype=np.float64)


def plateau(steps: Array, curve: Array) -> Array:
    """Return the mean `(...)` of curves `(..., T)` over their last quarter of steps."""
    late = steps >= LAST_QUARTER * steps[-1]
    return np.asarray(curve[..., late].mean(axis=-1), dtype=np.float64)


def gain(steps: Array, curve: Array) -> Array:
    """Return how far curves `(..., T)` rise: from their start to their plateau, `(...)`."""
    return np.asarray(plateau(steps, curve) - curve[..., 0], dtype=np.float64)


def level(steps: Array, curve: Array, share: float) -> Array:
    """Return the level `(...)` at this share of the gain of curves `(..., T)`."""
    return np.asarray(curve[..., 0] + share * gain(steps, curve), dtype=np.float64)


def cost_accuracy_curve(training: Array, selection: Array, accuracy: Array) -> tuple[Array, Array]:
    """Return x and y `(..., 2T - 1)` of the curve of accuracy against total cost.

    All arguments are `(..., T)`: what training alone had cost at each evaluation, what selection
    had, and accuracy. Between two evaluations accuracy first stays as it is while selection is
    paid, then rises in a straight line with training:

        (m0 + s0, a0), (m0 + s1, a0), (m1 + s1, a1), (m1 + s2, a1), ...
    """
    count = accuracy.shape[-1]
    x = np.empty((*accuracy.shape[:-1], 2 * count - 1))
    y = np.empty_like(x)
    x[..., 0::2], y[..., 0::2] = training + selection, accuracy
    x[..., 1::2], y[..., 1::2] = training[..., :-1] + selection[..., 1:], accuracy[..., :-1]
    return x, y


def first_crossing(x: Array, y: Array, goal: Array) -> Array:
    """Return where curves through knots (x, y), `(..., K)`, first reach `goal` `(...)`; inf: never.

    A curve that starts at or above the goal reaches it at its first x.
    """
    reached = y >= goal[..., None] - TOLERANCE
    first = reached.argmax(axis=-1)
    ends = first[..., None]
    before = np.maximum(ends - 1, 0)
    x1, y1 = _at(x, ends), _at(y, ends)
    x0, y0 = _at(x, before), _at(y, before)
    rise = np.where(y1 > y0, y1 - y0, 1.0)
    share = np.where(y1 > y0, np.clip((goal - y0) / rise, 0.0, 1.0), 1.0)
    return np.where(reached.any(axis=-1), x0 + share * (x1 - x0), np.inf)


def _at(values: Array, index: NDArray[np.intp]) -> Array:
    return np.asarray(np.take_along_axis(values, index, axis=-1)[..., 0], dtype=np.float64)


def seed_crossings(curves: Curves, axis: Axis, goal: float) -> Array | None:
    """Return where each seed's own curve first reaches `goal`, `(S,)`; inf: never.

    None means that the axis was not measured.
    """
    costs = curves.costs(axis)
    if costs is None:
        return None
    curve = cost_accuracy_curve(*costs, curves.targeted)
    return first_crossing(*curve, np.full(len(curves.seeds), goal))


def seed_steps(curves: Curves, goal: float) -> list[float | None]:
    """Return the step where each seed's own curve first reaches `goal`; None for never."""
    steps = seed_crossings(curves, "steps", goal)
    assert steps is not None, "steps are always measured"
    return [float(x) if np.isfinite(x) else None for x in steps]


def baseline_level(baseline: Curves, share: float) -> float | None:
    """Return the level of the mean curve; None where it gains less than LEAST_GAIN."""
    mean = baseline.targeted.mean(axis=0)
    if gain(baseline.steps, mean) < LEAST_GAIN:
        return None
    return float(level(baseline.steps, mean, share))


def acceleration(
    baseline: Curves, strategy: Curves, share: float, axis: Axis
) -> Acceleration | None:
    """Return the acceleration at one level on one axis; both curves hold the same seeds in order.

    None where the axis was not measured, or where the baseline gains less than LEAST_GAIN.
    """
    assert baseline.seeds == strategy.seeds, "paired seeds"
    goal = baseline_level(baseline, share)
    if goal is None:
        return None
    reached, standard = _reached(strategy, axis, goal), _reached(baseline, axis, goal)
    if reached is None or standard is None:
        return None
    # A strategy at the level from its start on has no ratio, nor have two that never reach it.
    defined = (reached.ever | standard.ever) & (reached.amounts > 0) & (standard.amounts > 0)
    plain = Acceleration(
        share=share,
        level=goal,
        axis=axis,
        baseline=standard.mean if standard.ever.any() else None,
        strategy=reached.mean if 2 * reached.ever.sum() > len(reached.ever) else None,
        ratio=None,
        seeds=len(strategy.seeds),
        never=int((~reached.ever).sum()),
        undefined=int((~defined).sum()),
    )
    return _with_ratio(plain, standard.for_seeds(defined), reached.for_seeds(defined))


@dataclass(frozen=True)
class _Reached:
    """What each seed had paid at the level, or in the end if it is not `ever` reached: `(S,)`."""

    amounts: Array
    ever: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """The geometric mean; of one seed its own amount, to the last bit."""
        first = float(self.amounts[0])
        zero = bool((self.amounts <= 0).any())
        return 0.0 if zero else first * float(np.exp(np.log(self.amounts / first).mean()))

    def for_seeds(self, seeds: NDArray[np.bool_]) -> _Reached:
        return _Reached(self.amounts[seeds], self.ever[seeds])


def _reached(curves: Curves, axis: Axis, goal: float) -> _Reached | None:
    """What each seed had paid at the level; None where the axis was not measured."""
    crossings, costs = seed_crossings(curves, axis, goal), curves.costs(axis)
    if crossings is None or costs is None:
        return None
    ever = np.isfinite(crossings)
    return _Reached(np.where(ever, crossings, costs[0][:, -1] + costs[1][:, -1]), ever)


def _with_ratio(plain: Acceleration, baseline: _Reached, strategy: _Reached) -> Acceleration:
    """Add the ratio over the seeds that have one, with its interval."""
    if plain.strategy is None:
        end = 0.0 if plain.seeds > 1 else None
        return replace(plain, ratio=0.0, low=end, high=end)
    if not len(baseline.amounts):
        return plain
    ratio = geometric_interval(baseline.amounts / strategy.amounts)
    low = 0.0 if ratio.low is not None and not strategy.ever.all() else ratio.low
    high = ratio.high if baseline.ever.all() else None
    return replace(plain, ratio=ratio.mean, low=low, high=high)


def oracle_share(baseline: Curves, strategy: Curves, oracle: Curves) -> Interval:
    """Return the strategy's share of the oracle's advantage in area, over the same seeds.

    NaN if several seeds cannot tell the advantage from none: a share of it would mean nothing.
    """
    floor, area_of, best = (area(c.steps, c.targeted) for c in (baseline, strategy, oracle))
    share = ratio_of_means(area_of - floor, best - floor)
    no_advantage = share.count > 1 and share.low is None
    return Interval(math.nan, None, None, share.count) if no_advantage else share


@dataclass(frozen=True)
class BreakEven:
    """Compute acceleration as a function of a stage's training cost over its selection cost.

    With m and s the FLOPs that training and selection had cost the strategy where it crosses the
    level, B the baseline's total there (geometric means over seeds), and c the ratio

        c = a stage's training FLOPs / a stage's selection FLOPs   (both averaged over the run),

    pricing selection so that c' holds instead of the measured c gives

        compute acceleration(c') = B / (m + s * c / c'),     break-even c' = s * c / (B - m).

    `break_even` is None if B <= m: then no price of selection makes it pay.
    """

    share: float
    measured: float
    break_even: float | None
    training: float
    selection: float
    baseline: float

    def at(self, ratio: float) -> float:
        """Return the compute acceleration if `ratio` held instead of the measured one."""
        return self.baseline / (self.training + self.selection * self.measured / ratio)


REPORTED_COST_RATIO = 5.0
"""The c at which the compute acceleration is reported in addition to the measured one."""


def break_even(baseline: Curves, strategy: Curves, share: float) -> BreakEven | None:
    """Return the break-even of a strategy's compute at one level, over the shared seeds.

    None where there is no level, where the strategy never reaches it, or where selection
    costs nothing.
    """
    paying = acceleration(baseline, strategy, share, "flops")
    free = acceleration(baseline, _without_selection_cost(strategy), share, "flops")
    if paying is None or free is None or not paying.ratio:
        return None
    training, selection = strategy.training["flops"], strategy.selection["flops"]
    whole, paid = float(training[:, -1].mean()), float(selection[:, -1].mean())
    if not paid:
        return None
    assert paying.baseline is not None, "a ratio above 0 has both amounts"
    assert paying.strategy is not None, "likewise"
    assert free.strategy is not None, "likewise"
    training_alone, baseline_total = free.strategy, paying.baseline
    selection_part = paying.strategy - training_alone
    measured, saved = whole / paid, baseline_total - training_alone
    return BreakEven(
        share=share,
        measured=measured,
        break_even=selection_part * measured / saved if saved > 0 else None,
        training=training_alone,
        selection=selection_part,
        baseline=baseline_total,
    )


def _without_selection_cost(curves: Curves) -> Curves:
    free = {axis: np.zeros_like(cost) for axis, cost in curves.selection.items()}
    return replace(curves, selection=free)
