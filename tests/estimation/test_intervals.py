"""Intervals cover what they say, over as few seeds as studies have."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from cropi.estimation.intervals import (
    Interval,
    correlation_interval,
    geometric_interval,
    mean_interval,
    ratio_of_means,
)

STUDIES = 3_000


def coverage(truth: float, study: Callable[[np.random.Generator], Interval]) -> float:
    """The share of simulated studies whose interval holds the truth; an unbounded one does."""
    draw = np.random.default_rng(17)
    intervals = [study(draw) for _ in range(STUDIES)]
    return float(np.mean([i.low is None or i.high is None or i.low <= truth <= i.high
                          for i in intervals]))  # fmt: skip


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_mean_covers_95_percent(seeds: int) -> None:
    covered = coverage(0.6, lambda draw: mean_interval(draw.normal(0.6, 0.1, seeds)))
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_geometric_mean_covers_95_percent(seeds: int) -> None:
    covered = coverage(
        4.0, lambda draw: geometric_interval(4.0 * np.exp(draw.normal(0, 0.3, seeds)))
    )
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("advantage", [0.03, 0.01])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_ratio_of_means_covers_95_percent(seeds: int, advantage: float) -> None:
    """Also where the denominator is within its noise: then it is unbounded, and holds all."""

    def study(draw: np.random.Generator) -> Interval:
        common = draw.normal(0, 0.01, seeds)
        top = 0.8 * advantage + common + draw.normal(0, 0.005, seeds)
        return ratio_of_means(top, advantage + common + draw.normal(0, 0.005, seeds))

    assert 0.935 <= coverage(0.8, study) <= 1.0


def test_a_ratio_that_every_seed_has_is_exact() -> None:
    paired = ratio_of_means([0.5, 0.51, 0.49], [1.0, 1.02, 0.98])
    assert (paired.mean, paired.low, paired.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_a_ratio_over_an_advantage_that_may_be_none_has_no_interval() -> None:
    noisy = ratio_of_means([0.01, 0.02, 0.03], [0.05, -0.04, 0.02])
    assert (noisy.low, noisy.high) == (None, None)
    assert noisy.mean == pytest.approx(2.0)
    assert math.isnan(ratio_of_means([0.1, 0.1], [-0.1, 0.05]).mean)
    assert ratio_of_means([0.1], [0.2]) == Interval(0.5, None, None, 1)


def test_one_value_has_a_geometric_mean_without_an_interval() -> None:
    only = geometric_interval([3.0])
    assert only.mean == pytest.approx(3.0)
    assert (only.low, only.high, only.count) == (None, None, 1)


@pytest.mark.parametrize(("truth", "pairs"), [(0.0, 6), (0.6, 12), (-0.8, 30)])
def test_the_interval_of_a_correlation_covers_95_percent(truth: float, pairs: int) -> None:
    def study(draw: np.random.Generator) -> Interval:
        first, other = draw.normal(size=(2, pairs))
        return correlation_interval(first, truth * first + math.sqrt(1 - truth**2) * other)

    assert coverage(truth, study) == pytest.approx(0.95, abs=0.02)


def test_a_correlation_of_few_or_equal_values_has_no_interval() -> None:
    assert math.isnan(correlation_interval([1, 2], [1, 2]).mean)
    assert math.isnan(correlation_interval([1, 1, 1, 1], [1, 2, 3, 4]).mean)
    assert correlation_interval([1, 2, 4], [1, 2, 3]).low is None
    perfect = correlation_interval([1, 2, 3, 4, 7], [2, 4, 6, 8, 14])
    assert (round(perfect.mean, 12), perfect.low is None or perfect.low > 0.99) == (1.0, True)
