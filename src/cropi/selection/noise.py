"""What influence is worth the name: how far cosines scatter when a prompt has nothing to say.

In a space of many parameters a prompt that has nothing to do with a target has a cosine near zero,
as often below as above it. So the negative half of the pool tells how wide noise is; its median is
used, which a few prompts that truly oppose the target (wrongly graded ones, say) do not move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cropi.schema import ScoreTable

HALF_NORMAL_MEDIAN = 0.6745
"""Median of |x| for a standard normal x."""
LEAST_SHARE = 0.2
"""Of the wanted prompts, the share that is taken even from within noise: few prompts overfit."""


def noise_width(cosine: NDArray[np.float32]) -> float:
    """Standard deviation of noise in the cosines [P] with one target; 0 where none is negative."""
    negative = -cosine[cosine < 0].astype(np.float64)
    return float(np.median(negative) / HALF_NORMAL_MEDIAN) if len(negative) else 0.0


def above_noise(scores: ScoreTable, floor: float) -> NDArray[np.bool_]:
    """Whether each prompt [P] exceeds `floor` standard deviations of noise on some target."""
    clear = [c > floor * noise_width(c) for c in scores.cosines.values()]
    return np.asarray(np.any(clear, axis=0))
