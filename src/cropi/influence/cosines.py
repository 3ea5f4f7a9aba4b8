"""Cosines of prompts with target directions, and how far a direction can be trusted.

What influence is once inner products and norms are known, whether gradients were streamed or
sketches read from files. NumPy alone, so that scoring stored features loads no model code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cropi.errors import InputError
from cropi.schema import InfluenceEstimate

Target = Literal["mean", "unit_mean"]


@dataclass(frozen=True)
class TargetReliability:
    """How far a target direction can be trusted.

    `split_half` is the cosine between the directions of two halves of the set, `effective` the
    number of prompts that carry it, (sum n)^2 / sum n^2 over the norms, `largest_share` the
    largest prompt's norm over the sum.
    """

    informative: int
    split_half: float
    effective: float
    largest_share: float

    def warnings(self, name: str) -> list[str]:
        """Sentences about a direction that deserves doubt."""
        found = []
        if self.informative >= 4 and self.largest_share > 0.5:
            found.append(
                f"validation set {name}: one prompt carries {self.largest_share:.0%} of the "
                "direction; consider influence.target=unit_mean"
            )
        if self.informative >= 8 and self.split_half < 0.2:
            found.append(
                f"validation set {name}: its two halves barely agree (cosine "
                f"{self.split_half:.2f}); more validation prompts or responses would help"
            )
        return found


@dataclass(frozen=True)
class Influence:
    """A pool's scores, the reliability of each target, and the tokens that scoring took."""

    estimate: InfluenceEstimate
    reliability: dict[str, TargetReliability]
    tokens: int
    notes: list[str] = field(default_factory=list)


def target_weights(norms: np.ndarray, target: Target) -> np.ndarray:
    """Weight of each validation prompt in gbar, from the norms of their gradients [n]."""
    if target == "mean":
        return np.full(len(norms), 1 / len(norms))
    # A gradient that cancels exactly has no direction: it adds nothing, and is not 0/0.
    return 1 / (len(norms) * np.where(norms > 0, norms, np.inf))


def cosine(dot: float, square_a: float, square_b: float) -> float:
    """Cosine from an inner product and two squared norms; NaN where one is zero."""
    if square_a <= 0 or square_b <= 0:
        return math.nan
    return float(dot / math.sqrt(square_a * square_b))


def target_reliability(weighted_norms: np.ndarray, split_half: float) -> TargetReliability:
    """Trust in a direction from its prompts' weighted norms [n] and its halves' cosine."""
    total, squares = float(weighted_norms.sum()), float((weighted_norms**2).sum())
    effective = total * total / squares if squares > 0 else 0.0
    largest = float(weighted_norms.max()) / total if total > 0 else math.nan
    return TargetReliability(len(weighted_norms), split_half, effective, largest)


def cosines(
    dots_PV: np.ndarray, norms_P: np.ndarray, target_norms: Sequence[float], names: Sequence[str]
) -> np.ndarray:
    """Divide inner products by norms.

    Raises InputError where a gradient is not finite or a target direction vanishes.
    """
    if not np.isfinite(dots_PV).all() or not np.isfinite(norms_P).all():
        bad = int((~np.isfinite(dots_PV).all(1) | ~np.isfinite(norms_P)).sum())
        raise InputError(
            f"{bad} of {len(norms_P)} gradients are not finite (NaN or infinity); check the "
            "checkpoint's weights and the rollouts' log-probs, or compute in float32"
        )
    for name, norm in zip(names, target_norms, strict=True):
        if norm == 0:
            raise InputError(
                f"the gradients of validation set {name} sum to zero, which points nowhere; add "
                "prompts to it or sample more responses"
            )
    # A prompt whose gradient cancels exactly helps nobody and harms nobody: cosine 0.
    safe_P = np.where(norms_P > 0, norms_P, 1.0)
    cosines_PV = dots_PV / (safe_P[:, None] * np.array(target_norms)[None])
    return np.asarray(np.clip(cosines_PV, -1.0, 1.0))
