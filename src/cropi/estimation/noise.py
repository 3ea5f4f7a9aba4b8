"""How sure an influence estimate is, and what several stages, or parts of a pool, say together.

Two questions are apart. *Which cosines could be those of unrelated prompts?* In a space of many
parameters a prompt that is unrelated to a target has a cosine near zero, as often below as above
it. So the negative half of the pool shows how wide that noise is. Its median is used, which a few
prompts that truly oppose the target (wrongly graded ones, say) hardly move. *How much would a
prompt's cosine change with other responses?* That is a prompt's own, from leaving each response
out; where it was not measured, the pooled noise stands for it. The noise floor asks the first
question: prompts whose own error is large are not worse than they look (docs/design/influence.md).

Shape legend: P prompts, K responses of one prompt, V targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

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


def jackknife_error(without_KV: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard error [V] of an estimate from its values [K, V] without each of K observations.

    sqrt((K - 1) / K sum (theta_j - mean theta)^2) (Efron and Stein 1981: too large rather than too
    small), at most 1: no cosine varies by more.
    """
    count = len(without_KV)
    squares_V = np.square(without_KV - without_KV.mean(0)).sum(0)
    return np.asarray(np.minimum(np.sqrt((count - 1) / count * squares_V), 1.0))


def with_pooled_errors(estimate: InfluenceEstimate) -> InfluenceEstimate:
    """`estimate` with each target's noise scale as the error of every prompt."""
    return replace(estimate, standard_error=pooled_standard_error(estimate.mean))


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


def joined_estimates(
    parts: Sequence[InfluenceEstimate], prompt_ids: Sequence[str]
) -> InfluenceEstimate:
    """One estimate of a whole pool from those of its parts, in the pool's order."""
    place = {name: n for n, name in enumerate(name for part in parts for name in part.prompt_ids)}
    order = [place[name] for name in prompt_ids]

    def together(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, np.ndarray):
            return np.concatenate(values)[order]
        if isinstance(first, list):
            flat = [each for value in values for each in value]
            return [flat[number] for number in order]
        if isinstance(first, dict) and _is_by_prompt(first):
            return {name: together([value[name] for value in values]) for name in first}
        return first

    whole = {f.name: together([getattr(p, f.name) for p in parts]) for f in fields(parts[0])}
    estimate = InfluenceEstimate(**whole)
    # Errors that are not a prompt's own are the scale of the whole pool's cosines.
    return estimate if estimate.responses else with_pooled_errors(estimate)


def _is_by_prompt(values: Mapping[str, Any]) -> bool:
    """Whether a field holds something about each prompt, by target."""
    return any(isinstance(value, np.ndarray | list) for value in values.values())
