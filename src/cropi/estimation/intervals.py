"""95% intervals: of means and ratios over few seeds or repeats (Student's t), of shares (Wilson's).

A percentile bootstrap over S seeds covers about 75% (S = 3), 83% (5) or 90% (10) where it says 95%;
these cover what they say, for values that are about normal (means), log-normal (geometric means) or
jointly normal (ratios of means).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179),
    *(2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060),
    *(2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5% quantile of Student's t with 1 to 30 degrees of freedom."""

Z_975 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean of `count` values and its 95% interval; `low` and `high` are None for one value."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float:
        """Half the interval's width; 0 without an interval."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t; beyond the table, Cornish and Fisher's first term."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    return Z_975 + (Z_975**3 + Z_975) / (4 * freedom)


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The mean of independent values with Student's 95% interval; NaN without values."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Interval(math.nan, None, None, 0)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None, 1)
    half = t_quantile(len(sample) - 1) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Interval(mean, mean - half, mean + half, len(sample))


def geometric_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The geometric mean of independent positive values, with Student's interval of their logs."""
    logs = mean_interval(np.log(np.asarray(values, dtype=np.float64)))
    if logs.low is None or logs.high is None:
        return Interval(math.exp(logs.mean), None, None, logs.count)
    low, mean, high = (math.exp(value) for value in (logs.low, logs.mean, logs.high))
    return Interval(mean, low, high, logs.count)


def ratio_of_means(
    numerators: Sequence[float] | NDArray[np.float64],
    denominators: Sequence[float] | NDArray[np.float64],
) -> Interval:
    """The mean of the numerators over that of the paired denominators, with Fieller's interval.

    It holds the ratios r for which the mean of n - r d may be zero by Student's t. `low` and `high`
    are None for fewer than two pairs, and where the denominators' mean may itself be zero: then no
    bounded interval covers. The mean is NaN if the denominators sum to zero or less.
    """
    pairs = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)])
    count = pairs.shape[1]
    top, bottom = pairs.mean(axis=1) if count else (math.nan, math.nan)
    mean = float(top / bottom) if bottom > 0 else math.nan
    if count < 2 or not bottom > 0:
        return Interval(mean, None, None, count)
    variances = np.cov(pairs) * t_quantile(count - 1) ** 2 / count
    # The roots of (top - r bottom)^2 = variance of (n - r d): a r^2 - 2 b r + c = 0.
    a = float(bottom**2 - variances[1, 1])
    b = float(top * bottom - variances[0, 1])
    c = float(top**2 - variances[0, 0])
    if a <= 0:
        return Interval(mean, None, None, count)
    spread = math.sqrt(max(0.0, b * b - a * c))
    return Interval(mean, (b - spread) / a, (b + spread) / a, count)


def correlation_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Pearson's correlation of pairs with Fisher's interval; NaN where one does not vary.

    `low` and `high` are None for fewer than four pairs, and where the correlation is perfect.
    """
    pairs = np.array([first, second], dtype=np.float64)
    count = pairs.shape[1]
    if count < 3 or (pairs.std(axis=1) == 0).any():
        return Interval(math.nan, None, None, count)
    mean = float(np.clip(np.asarray(np.corrcoef(pairs))[0, 1], -1, 1))
    if count < 4 or abs(mean) == 1:
        return Interval(mean, None, None, count)
    centre, half = math.atanh(mean), Z_975 / math.sqrt(count - 3)
    return Interval(mean, math.tanh(centre - half), math.tanh(centre + half), count)


def share_interval(hits: int, count: int) -> Interval:
    """A share with Wilson's 95% interval, which stays within [0, 1]; NaN without cases."""
    if count == 0:
        return Interval(math.nan, None, None, 0)
    share, square = hits / count, Z_975**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    half = Z_975 * spread / (1 + square / count)
    # Wilson's interval touches the share itself at 0 and 1, up to rounding.
    return Interval(share, min(share, centre - half), max(share, centre + half), count)
