"""The measures of a study, as pure functions of NumPy arrays. All rules are fixed here.

Legend: S seeds, T evaluations, K knots of a curve, R resamples; accuracies are shares in [0, 1].

**Curve.** Accuracy of a strategy at the evaluation steps that all its seeds share: the mean over
sets per seed, then the mean over seeds, straight lines in between. Nothing else is smoothed.

**Level.** With b(t) the baseline's mean curve and T its last step,

    level(f) = b(0) + f * (mean of b(t) over evaluations with t >= 3/4 T  -  b(0)),  f in LEVELS.

The mean over the last quarter is where the baseline ends, with less noise than one evaluation has.
It is at most the highest of them, so that the baseline itself always reaches its levels. A baseline
that gains less than LEAST_GAIN has no meaningful level: no ratio is given.

**Steps to a level.** Where the mean curve first crosses it, by linear interpolation.

**Acceleration** = the baseline's steps to the level / the strategy's. A strategy that never
reaches the level gets 0, which is shown as "never".

**Compute acceleration** is the same ratio on the axis of FLOPs, and likewise of seconds: x is the
mean over seeds of what had been paid at each evaluation, selection included. What a stage's
selection costs is paid before the stage's first step: there the curve is flat
(`cost_accuracy_curve`).

**Area** = area under the targeted curve by the trapezoid rule, over the number of steps: the mean
accuracy during training.

**Intervals** are 95% percentile bootstrap intervals over seeds: RESAMPLES draws of S seeds with
replacement from a fixed random generator. Each draw recomputes mean curves, level and ratio. Seeds
are paired: a draw takes the same seeds of the baseline and of the strategy, since they share start
policy, prompts and rollouts. A draw in which the strategy never reaches counts as ratio 0; one in
which the baseline gains less than LEAST_GAIN has no ratio and is left out; both are counted.
One seed has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.estimation.intervals import Interval

Array = NDArray[np.float64]
Axis = Literal["steps", "flops", "seconds"]

AXES: tuple[Axis, ...] = ("steps", "flops", "seconds")
LEVELS = (0.80, 0.90, 0.95)
MAIN_LEVEL = 0.95
LAST_QUARTER = 0.75
LEAST_GAIN = 0.02
RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_251
TOLERANCE = 1e-9
"""Accuracies are means of rates: a level counts as reached within rounding."""


@dataclass(frozen=True)
class Curves:
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

    def of(self, seeds: tuple[int, ...]) -> Curves:
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

    `baseline` and `strategy` are the axis' amounts up to the level; `strategy` is None if it never
    reaches it. `ratio` is `baseline / strategy`, 0 for never, None where it has no meaning (a
    strategy that starts at the level). Of the resamples, `never` did not reach it and `undefined`
    have no level.
    """

    share: float
    level: float
    axis: Axis
    baseline: float | None
    strategy: float | None
    ratio: float | None
    low: float | None = None
    high: float | None = None
    never: int = 0
    undefined: int = 0


def bootstrap_weights(seeds: int, resamples: int = RESAMPLES) -> Array | None:
    """Return bootstrap weights `(R, S)`, rows summing to 1; None for fewer than two seeds.

    Row r holds how often each seed was drawn, over S: the mean over the drawn seeds of any
    `(S, T)` array is a matrix product. The same S always gives the same weights.
    """
    if seeds < 2:
        return None
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(seeds, size=(resamples, seeds))
    counts = np.zeros((resamples, seeds))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts / seeds


def interval(values: Array) -> tuple[float, float] | None:
    """Return the 2.5% and 97.5% percentiles of the values that are not NaN; None without any."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    # Neighbouring order statistics, not a line between them: half-way to "never" means nothing.
    low = np.percentile(defined, 2.5, method="lower")
    return float(low), float(np.percentile(defined, 97.5, method="higher"))


def mean_over_seeds(values: Array) -> Interval:
    """Return the mean over seeds `(S,)` with its bootstrap interval, if there is more than one."""
    mean, weights = float(values.mean()), bootstrap_weights(len(values))
    ends = None if weights is None else interval(weights @ values)
    low, high = ends or (None, None)
    return Interval(mean, low, high, len(values))


def band(values: Array) -> tuple[Array, Array] | None:
    """Return the 95% interval of the mean at every evaluation, each `(T,)`; None for one seed."""
    weights = bootstrap_weights(len(values))
    if weights is None:
        return None
    low, high = np.percentile(weights @ values, [2.5, 97.5], axis=0)
    return low, high


def area(steps: Array, curve: Array) -> Array:
    """Return the area under curves `(..., T)` over the number of steps: mean accuracy `(...)`."""
    span = float(steps[-1] - steps[0])
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


def crossings(curves: Curves, axis: Axis, goal: Array, weights: Array) -> Array | None:
    """Return where the mean curve of each weighting `(R, S)` first reaches `goal` `(R,)`: `(R,)`.

    inf means never; None means that the axis was not measured.
    """
    costs = curves.costs(axis)
    if costs is None:
        return None
    training, selection = (weights @ c for c in costs)
    return first_crossing(
        *cost_accuracy_curve(training, selection, weights @ curves.targeted), goal
    )


def seed_steps(curves: Curves, goal: float) -> list[float | None]:
    """Return the step where each seed's own curve first reaches `goal`; None for never."""
    each = np.eye(len(curves.seeds))
    steps = crossings(curves, "steps", np.full(len(each), goal), each)
    assert steps is not None, "steps are always measured"
    return [float(x) if np.isfinite(x) else None for x in steps]


def acceleration(
    baseline: Curves, strategy: Curves, share: float, axis: Axis
) -> Acceleration | None:
    """Return the acceleration at one level on one axis; both curves hold the same seeds in order.

    None where the axis was not measured, or where the baseline gains less than LEAST_GAIN.
    """
    assert baseline.seeds == strategy.seeds, "paired seeds"
    count = len(strategy.seeds)
    means = _ratios(baseline, strategy, share, axis, np.full((1, count), 1 / count))
    if means is None or np.isnan(means.goal[0]):
        return None
    point = Acceleration(
        share=share,
        level=float(means.goal[0]),
        axis=axis,
        baseline=_finite(means.baseline[0]),
        strategy=_finite(means.strategy[0]),
        ratio=_finite(means.ratio[0]),
    )
    weights = bootstrap_weights(count)
    return point if weights is None else _with_interval(point, baseline, strategy, weights)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _with_interval(
    point: Acceleration, baseline: Curves, strategy: Curves, weights: Array
) -> Acceleration:
    drawn = _ratios(baseline, strategy, point.share, point.axis, weights)
    assert drawn is not None, "the axis was measured"
    low, high = interval(drawn.ratio) or (None, None)
    return replace(
        point,
        low=low,
        high=high,
        never=int((drawn.ratio == 0).sum()),
        undefined=int(np.isnan(drawn.ratio).sum()),
    )


@dataclass(frozen=True)
class _Ratios:
    """Level, both amounts and their ratio, `(R,)` each; NaN where there is no level."""

    goal: Array
    baseline: Array
    strategy: Array
    ratio: Array


def _ratios(
    baseline: Curves, strategy: Curves, share: float, axis: Axis, weights: Array
) -> _Ratios | None:
    mean = weights @ baseline.targeted
    has_level = gain(baseline.steps, mean) >= LEAST_GAIN
    goal = np.where(has_level, level(baseline.steps, mean, share), np.nan)
    baseline_cost = crossings(baseline, axis, goal, weights)
    strategy_cost = crossings(strategy, axis, goal, weights)
    if baseline_cost is None or strategy_cost is None:
        return None
    # A strategy at the level from its start on (cost 0) has no ratio; never is x / inf = 0.
    meaningful = has_level & np.isfinite(baseline_cost) & (strategy_cost > 0)
    undefined = np.full_like(baseline_cost, np.nan)
    ratio = np.divide(baseline_cost, strategy_cost, out=undefined, where=meaningful)
    return _Ratios(goal, baseline_cost, strategy_cost, ratio)


@dataclass(frozen=True)
class BreakEven:
    """Compute acceleration as a function of a stage's training cost over its selection cost.

    With m and s the FLOPs that training and selection had cost the strategy where it crosses the
    level, B the baseline's total there, and c the ratio

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
    assert baseline.seeds == strategy.seeds, "paired seeds"
    uniform = np.full((1, len(strategy.seeds)), 1 / len(strategy.seeds))
    means = _ratios(baseline, strategy, share, "flops", uniform)
    if means is None or not means.ratio[0] > 0:
        return None
    training, selection = strategy.training["flops"], strategy.selection["flops"]
    whole, paid = float(training[:, -1].mean()), float(selection[:, -1].mean())
    alone = crossings(_without_selection_cost(strategy), "flops", means.goal, uniform)
    if not paid or alone is None:
        return None
    training_alone, baseline_total = float(alone[0]), float(means.baseline[0])
    selection_part = float(means.strategy[0]) - training_alone
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
