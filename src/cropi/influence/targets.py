"""Target directions: how prompts of a validation set are weighted, and how reliable the sum is.

One implementation for dense gradients, their sketches and stored features: each sums gradients
with the two rows of `half_weights` and hands the halves' inner products to `target_reliability`.
NumPy alone, so that scoring stored features loads no model code.

Shape legend: N prompts of a validation set, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.influence.left_out_prompts import SMALLEST_NORM

Target = Literal["mean", "unit_mean"]

DOMINANT_SHARE = 0.5
"""Above this share of a direction, one prompt determines it, and a warning says so."""
WEAK_SPLIT_HALF = 0.2
"""Below this cosine, two halves of a validation set hardly agree on a direction."""


@dataclass(frozen=True)
class TargetReliability:
    """How reliable a target direction is.

    `split_half` is the cosine between the directions of two halves of the set, `effective` the
    number of prompts that carry it, (sum n)^2 / sum n^2 over the norms, `largest_share` the
    largest prompt's norm over the sum.
    """

    informative: int
    split_half: float
    effective: float
    largest_share: float

    def warnings(self, name: str) -> list[str]:
        """Sentences about what makes the direction unreliable."""
        sentences = []
        if self.informative >= 4 and self.largest_share > DOMINANT_SHARE:
            sentences.append(
                f"validation set {name}: one prompt carries {self.largest_share:.0%} of the "
                "direction; consider the mean of unit gradients (target=unit_mean)"
            )
        if self.informative >= 8 and self.split_half < WEAK_SPLIT_HALF:
            sentences.append(
                f"validation set {name}: its two halves barely agree (cosine "
                f"{self.split_half:z.2f}); more validation prompts or responses would help"
            )
        return sentences


def cosine(dot: float, square_a: float, square_b: float) -> float:
    """Cosine from an inner product and two squared norms; NaN where one is zero."""
    if square_a <= 0 or square_b <= 0:
        return math.nan
    return float(dot / math.sqrt(square_a * square_b))


def target_weights(norms_N: NDArray[np.floating], target: Target) -> NDArray[np.float64]:
    """Weight of each validation prompt in gbar, from the norms of their gradients."""
    if target == "mean":
        return np.full(len(norms_N), 1 / len(norms_N))
    # A gradient that cancels exactly has no direction: it adds nothing, and is not 0/0.
    lengths_N = np.where(norms_N < SMALLEST_NORM, np.inf, norms_N)
    return np.asarray(1 / (len(norms_N) * lengths_N))


def half_weights(norms_N: NDArray[np.floating], target: Target) -> NDArray[np.float64]:
    """Weights [2, N] of two halves, even and odd prompts, whose sums add up to gbar."""
    weights_N = target_weights(norms_N, target)
    even_N = np.arange(len(norms_N)) % 2 == 0
    return np.stack([weights_N * even_N, weights_N * ~even_N])


def half_products(halves_2D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner products [2, 2] of two halves."""
    return np.array([[one @ other for other in halves_2D] for one in halves_2D])


def target_reliability(
    weights_2N: NDArray[np.float64], norms_N: NDArray[np.floating], products_22: NDArray[np.float64]
) -> TargetReliability:
    """The reliability of a direction from its halves' weights and inner products.

    `norms_N` are the plain gradients' norms; prompts that were left out have none. The split-half
    cosine is NaN if a half is empty.
    """
    shares_N = weights_2N.sum(0) * norms_N
    total, squares = float(shares_N.sum()), float((shares_N**2).sum())
    return TargetReliability(
        informative=int((norms_N >= SMALLEST_NORM).sum()),
        split_half=cosine(products_22[0, 1], products_22[0, 0], products_22[1, 1]),
        effective=total * total / squares if squares > 0 else 0.0,
        largest_share=float(shares_N.max()) / total if total > 0 else math.nan,
    )
