"""Means with 95% intervals: over few seeds or repeats (Student's t), and of shares (Wilson's)."""

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
