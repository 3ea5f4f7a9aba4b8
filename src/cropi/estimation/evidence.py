"""How sure an influence estimate is, and what several stages say together.

In a space of many parameters a prompt that is unrelated to a target has a cosine near zero, as
often below as above it. So the negative half of the pool shows how wide noise is. Its median is
used, which a few prompts that truly oppose the target (wrongly graded ones, say) hardly move. Today
this one pooled value per target is every prompt's standard error; errors of single prompts, from
the spread over their responses, are to replace it.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cropi.schema import InfluenceEstimate

HALF_NORMAL_MEDIAN = 0.6745
"""Median of |x| for a standard normal x."""


def noise_scale(mean: NDArray[np.floating]) -> float:
    """Standard deviation of noise in the cosines [P] with one target; 0 if none is negative."""
    negative = -mean[mean < 0].astype(np.float64)
    return float(np.median(negative) / HALF_NORMAL_MEDIAN) if len(negative) else 0.0


def pooled_standard_error(
    mean: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float64]]:
    """Each target's noise scale as the error of every measured prompt [P]; NaN elsewhere."""
    return {
        name: np.where(np.isnan(values), np.nan, noise_scale(values))
        for name, values in mean.items()
    }


def with_standard_errors(estimate: InfluenceEstimate) -> InfluenceEstimate:
    """`estimate` with the pooled error for every target whose errors are unknown."""
    unknown = {
        name: values
        for name, values in estimate.mean.items()
        if np.isnan(estimate.standard_error[name]).all()
    }
    if not unknown:
        return estimate
    errors = estimate.standard_error | pooled_standard_error(unknown)
    return replace(estimate, standard_error=errors)


def exceeds_noise(estimate: InfluenceEstimate, floor: float) -> NDArray[np.bool_]:
    """Whether each prompt [P] is above `floor` standard errors on some target."""
    exceeds = [
        # Compared in the mean's own precision, which its last bit was rounded to.
        mean > (floor * estimate.standard_error[name]).astype(np.float32)
        for name, mean in estimate.mean.items()
    ]
    return np.asarray(np.any(exceeds, axis=0))


def running_mean(
    current: InfluenceEstimate, earlier: Sequence[InfluenceEstimate], memory: float
) -> InfluenceEstimate:
    """The scored prompts of `current` with the weighted mean over stages, oldest first.

        m_0 = U_0,    m_t = memory m_(t-1) + (1 - memory) U_t        per prompt and target

    A prompt or target that a stage did not score has the mean of those stages that did. The
    standard errors are those of the combined means.
    """
    if memory <= 0 or not earlier:
        return current
    scored = current.scored()
    combined = {
        name: _combine([*_past(scored, earlier, name), values], memory)
        for name, values in scored.mean.items()
    }
    return replace(scored, mean=combined, standard_error=pooled_standard_error(combined))


def _combine(stages: Sequence[NDArray[np.floating]], memory: float) -> NDArray[np.float32]:
    """The running mean over values [P] of stages, of which NaN ones do not count."""
    mean = np.full(len(stages[-1]), np.nan)
    for values in stages:
        blend = memory * mean + (1 - memory) * values
        mean = np.where(np.isnan(mean), values, np.where(np.isnan(values), mean, blend))
    return mean.astype(np.float32)


def _past(
    current: InfluenceEstimate, earlier: Sequence[InfluenceEstimate], name: str
) -> list[NDArray[np.float64]]:
    """Means [P] of the stages that had this target, in the order of `current`'s prompts."""
    stages = []
    for estimate in earlier:
        if name in estimate.mean:
            by_id = dict(zip(estimate.prompt_ids, estimate.mean[name].tolist(), strict=True))
            stages.append(np.array([by_id.get(i, np.nan) for i in current.prompt_ids]))
    return stages
