"""The measures against values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cropi.estimation.intervals import mean_interval, t_quantile
from cropi.study import measures
from cropi.study.measures import Axis, Curves

STEPS = np.array([0.0, 25.0, 50.0, 75.0, 100.0])
SLOW = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Gains 1 point in 2.5 steps; its last quarter's mean is 75%, 35 points above its start."""
FAST = (0.4, 0.6, 0.8, 0.8, 0.8)
CHUNK = 9.0


def curves(*seeds: tuple[float, ...], paid: tuple[float, ...] = (0, 0, 0, 0, 0)) -> Curves:
    """Curves whose training costs 9 FLOPs between evaluations, and selection as `paid`."""
    count = len(seeds)
    training_cost = np.tile(CHUNK * np.arange(5.0), (count, 1))
    selection = np.tile(np.array(paid, dtype=float), (count, 1))
    training: dict[Axis, np.ndarray] = {"flops": training_cost}
    return Curves(tuple(range(count)), STEPS, np.array(seeds), None, training, {"flops": selection})


SELECTING = (0.0, 13.5, 13.5, 18.0, 18.0)
"""Rollouts 9 and scoring 4.5 before the first stage, scoring 4.5 before the second."""


@pytest.mark.parametrize(
    ("share", "level", "steps"), [(0.80, 0.68, 70), (0.90, 0.715, 78.75), (0.95, 0.7325, 83.125)]
)
def test_levels_are_shares_of_the_gain_up_to_the_last_quarters_mean(
    share: float, level: float, steps: float
) -> None:
    result = measures.acceleration(curves(SLOW), curves(FAST), share, "steps")
    assert result is not None
    assert result.level == pytest.approx(level)
    assert result.baseline == pytest.approx(steps)
    assert result.strategy == pytest.approx(steps / 2)
    assert result.ratio == pytest.approx(2)


def test_steps_are_the_geometric_mean_of_the_seeds_own_crossings() -> None:
    early, late = (0.4, 0.8, 0.8, 0.8, 0.8), (0.4, 0.4, 0.4, 0.8, 0.8)
    result = measures.acceleration(curves(SLOW, SLOW), curves(early, late), 0.8, "steps")
    assert measures.seed_steps(curves(early, late), 0.68) == pytest.approx([17.5, 67.5])
    assert result is not None
    assert result.strategy == pytest.approx((17.5 * 67.5) ** 0.5)
    assert result.ratio == pytest.approx(70 / result.strategy)


def test_fewer_evaluations_understate_a_curve_that_bends() -> None:
    fine, coarse = curves(FAST, paid=SELECTING), curves(FAST, paid=SELECTING).every(2)
    assert coarse.steps.tolist() == STEPS[::2].tolist()
    assert coarse.targeted[0].tolist() == list(FAST[::2])
    assert coarse.training["flops"][0].tolist() == fine.training["flops"][0, ::2].tolist()
    assert coarse.selection["flops"][0].tolist() == fine.selection["flops"][0, ::2].tolist()
    assert fine.every(1).targeted.tolist() == fine.targeted.tolist()
    assert fine.every(3).steps.tolist() == [STEPS[0], STEPS[3], STEPS[4]]
    bent = (0.4, 0.76, 0.82, 0.84, 0.86)
    results = [measures.acceleration(curves(SLOW).every(n), curves(bent).every(n), 0.8, "steps")
             for n in (1, 2)]  # fmt: skip
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].strategy < results[1].strategy


def test_first_crossing_counts_even_if_the_curve_falls_back() -> None:
    bumpy = (0.4, 0.7, 0.5, 0.6, 0.8)
    result = measures.acceleration(curves(SLOW), curves(bumpy), 0.8, "steps")
    assert result is not None
    assert result.strategy == pytest.approx(25 * 0.28 / 0.3)


def test_a_level_met_exactly_at_an_evaluation_is_reached_there() -> None:
    x = np.array([[0.0, 1.0, 2.0]])
    y = np.array([[0.0, 0.1 + 0.2, 0.3]])
    assert measures.first_crossing(x, y, np.array([0.3])) == pytest.approx([1.0])


def test_compute_acceleration_pays_selection_before_the_stage() -> None:
    strategy = curves(FAST, paid=SELECTING)
    result = measures.acceleration(curves(SLOW), strategy, 0.8, "flops")
    # 70 steps cost 70 / 25 x 9 = 25.2; 35 steps cost 12.6, and 13.5 for selection.
    assert result is not None
    assert result.baseline == pytest.approx(25.2)
    assert result.strategy == pytest.approx(26.1)
    assert result.ratio == pytest.approx(25.2 / 26.1)


def test_costs_paid_between_evaluations_are_a_flat_stretch() -> None:
    x, y = measures.cost_accuracy_curve(
        np.array([0.0, 9, 18]), np.array([0.0, 5, 5]), np.array([0.1, 0.2, 0.3])
    )
    assert x.tolist() == [0, 5, 14, 14, 23]
    assert y.tolist() == [0.1, 0.1, 0.2, 0.2, 0.3]


def test_selection_paid_after_the_crossing_costs_nothing_up_to_it() -> None:
    later = curves(FAST, paid=(0, 0, 0, 1000, 1000))
    result = measures.acceleration(curves(SLOW), later, 0.8, "flops")
    assert result is not None
    assert result.ratio == pytest.approx(2)


def test_an_unmeasured_axis_has_no_acceleration() -> None:
    assert measures.acceleration(curves(SLOW), curves(FAST), 0.8, "seconds") is None


def test_never_is_a_ratio_of_zero() -> None:
    flat = (0.4, 0.5, 0.5, 0.5, 0.5)
    result = measures.acceleration(curves(SLOW, SLOW), curves(flat, flat), 0.8, "steps")
    assert result is not None
    assert result.strategy is None
    assert (result.ratio, result.low, result.high) == (0, 0, 0)
    assert (result.never, result.seeds) == (2, 2)


def test_a_strategy_that_starts_at_the_level_has_no_ratio() -> None:
    result = measures.acceleration(curves(SLOW), curves((0.9,) * 5), 0.8, "steps")
    assert result is not None
    assert result.strategy == 0
    assert result.ratio is None


@pytest.mark.parametrize("gain", [-0.1, 0.0, 0.019])
def test_a_baseline_that_gains_too_little_has_no_level(gain: float) -> None:
    still = tuple(np.full(5, 0.4) + np.array([0, 0, 0, gain, gain]))
    assert measures.acceleration(curves(still), curves(FAST), 0.8, "steps") is None
    assert measures.break_even(curves(still), curves(FAST, paid=SELECTING), 0.8) is None


def test_a_strategy_equal_to_the_baseline_is_neither_faster_nor_slower() -> None:
    draw = np.random.default_rng(3)
    for _ in range(200):
        base = curves(*[tuple(draw.random(5)) for _ in range(3)])
        for share in measures.LEVELS:
            result = measures.acceleration(base, base, share, "steps")
            if result is None or result.ratio in (None, 0):
                continue
            assert result.ratio == pytest.approx(1)
            assert result.never == result.undefined or result.undefined >= result.never


def test_area_is_the_mean_accuracy_over_training() -> None:
    assert measures.area(STEPS, np.array(SLOW)) == pytest.approx(0.6)
    assert measures.area(STEPS, np.array(FAST)) == pytest.approx(0.7)
    uneven = np.array([0.0, 10.0, 100.0])
    assert measures.area(uneven, np.array([0.0, 1.0, 1.0])) == pytest.approx(0.95)


def test_an_area_over_no_steps_is_the_accuracy() -> None:
    assert measures.area(np.array([0.0]), np.array([[0.4], [0.6]])).tolist() == [0.4, 0.6]


def test_one_seed_has_no_interval() -> None:
    result = measures.acceleration(curves(SLOW), curves(FAST), 0.8, "steps")
    assert result is not None
    assert result.low is None
    assert result.high is None
    assert measures.band(np.array([FAST])) is None


def test_equal_seeds_have_intervals_without_width() -> None:
    result = measures.acceleration(curves(SLOW, SLOW), curves(FAST, FAST), 0.8, "steps")
    assert result is not None
    assert result.low == pytest.approx(2)
    assert result.high == pytest.approx(2)


def test_seeds_are_paired() -> None:
    """Seeds that shift baseline and strategy alike leave the difference without spread."""
    shift = np.array([[-0.05], [0.0], [0.08]])
    slow, fast = np.array(SLOW) + shift, np.array(FAST) + shift
    difference = mean_interval(fast[:, 2] - slow[:, 2])
    assert difference.low == pytest.approx(0.2)
    assert difference.high == pytest.approx(0.2)
    pair = curves(*map(tuple, slow)), curves(*map(tuple, fast))
    shared = measures.oracle_share(pair[0], pair[1], pair[1])
    assert (shared.mean, shared.low, shared.high) == pytest.approx((1, 1, 1), abs=1e-6)


def test_a_share_of_an_advantage_that_may_be_none_has_no_value() -> None:
    """An oracle that is ahead by .02 with one seed and behind by .018 with the other."""
    shift = np.array([[0.02], [-0.018]])
    slow, oracle = curves(SLOW, SLOW), curves(*map(tuple, np.array(SLOW) + shift))
    assert np.isnan(measures.oracle_share(slow, curves(FAST, FAST), oracle).mean)
    assert measures.oracle_share(curves(SLOW), curves(FAST), curves(FAST)).mean == pytest.approx(1)


def test_the_interval_of_a_ratio_is_students_over_the_logs_of_the_seeds_ratios() -> None:
    """Seeds that are 2, 2 and 4 times faster: logs with standard deviation log(2) / sqrt(3)."""
    faster = (0.4, 0.8, 0.8, 0.8, 0.8)
    result = measures.acceleration(curves(SLOW, SLOW, SLOW), curves(FAST, FAST, faster), 0.8,
                                   "steps")  # fmt: skip
    half = t_quantile(2) * np.log(2) / 3
    assert result is not None
    assert result.ratio == pytest.approx(2 ** (4 / 3))
    assert result.low == pytest.approx(2 ** (4 / 3) / np.exp(half))
    assert result.high == pytest.approx(2 ** (4 / 3) * np.exp(half))


def test_a_seed_that_never_reaches_counts_at_its_end_and_opens_the_interval_below() -> None:
    slow_seed = (0.4, 0.45, 0.5, 0.5, 0.5)
    pair = curves(SLOW, SLOW, SLOW), curves(slow_seed, FAST, FAST)
    result = measures.acceleration(*pair, 0.8, "steps")
    assert result is not None
    assert (result.never, result.undefined, result.seeds) == (1, 0, 3)
    assert result.ratio == pytest.approx((0.7 * 2 * 2) ** (1 / 3))
    assert result.low == 0
    assert result.high is not None
    assert result.high > 2


def test_half_of_the_seeds_that_never_reach_make_the_ratio_never() -> None:
    flat = (0.4, 0.45, 0.5, 0.5, 0.5)
    result = measures.acceleration(curves(SLOW, SLOW), curves(flat, FAST), 0.8, "steps")
    assert result is not None
    assert (result.ratio, result.low, result.high) == (0, 0, 0)
    assert (result.never, result.strategy) == (1, None)


def test_a_baseline_seed_that_never_reaches_opens_the_interval_above() -> None:
    still = (0.4, 0.5, 0.5, 0.5, 0.5)
    result = measures.acceleration(curves(still, SLOW, SLOW), curves(FAST, FAST, FAST), 0.95,
                                   "steps")  # fmt: skip
    assert result is not None
    assert (result.never, result.undefined) == (0, 0)
    assert result.ratio is not None
    assert result.low is not None
    assert result.low < result.ratio
    assert result.high is None


def test_a_seed_without_a_crossing_on_either_side_has_no_ratio_and_is_counted() -> None:
    still = (0.4, 0.5, 0.5, 0.5, 0.5)
    result = measures.acceleration(curves(still, SLOW, SLOW), curves(still, FAST, FAST), 0.95,
                                   "steps")  # fmt: skip
    assert result is not None
    assert (result.never, result.undefined) == (1, 1)
    assert result.ratio is not None
    assert result.ratio > 1


def test_break_even_in_compute_by_hand() -> None:
    point = measures.break_even(curves(SLOW), curves(FAST, paid=SELECTING), 0.8)
    # Training 36 of 2 stages, selection 18: c = 2. B = 25.2, m = 12.6, s = 13.5.
    assert point is not None
    assert point.measured == pytest.approx(2)
    assert point.break_even == pytest.approx(13.5 * 2 / 12.6)
    assert point.at(point.measured) == pytest.approx(25.2 / 26.1)
    assert point.at(5) == pytest.approx(25.2 / (12.6 + 13.5 * 2 / 5))
    assert point.break_even is not None
    assert point.at(point.break_even) == pytest.approx(1)


def test_break_even_is_what_repricing_selection_really_gives() -> None:
    base, strategy = curves(SLOW), curves(FAST, paid=SELECTING)
    point = measures.break_even(base, strategy, 0.9)
    assert point is not None
    cheaper = replace(strategy, selection={"flops": strategy.selection["flops"] * 2 / 5})
    again = measures.acceleration(base, cheaper, 0.9, "flops")
    assert again is not None
    assert again.ratio == pytest.approx(point.at(5))


def test_no_price_of_selection_pays_for_a_strategy_that_is_slower_anyway() -> None:
    point = measures.break_even(curves(FAST), curves(SLOW, paid=SELECTING), 0.8)
    assert point is not None
    assert point.break_even is None
    assert point.at(1e9) < 1


def test_break_even_needs_a_price_and_a_crossing() -> None:
    flat = (0.4, 0.5, 0.5, 0.5, 0.5)
    assert measures.break_even(curves(SLOW), curves(FAST), 0.8) is None
    assert measures.break_even(curves(SLOW), curves(flat, paid=SELECTING), 0.8) is None
