"""Statistics of the prompts in a set of rollouts, before any gradient.

Selection strategies and the report read them: how often a prompt is solved, how much its rewards
vary, whether it has a gradient. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cropi.schema import RewardStatus, RolloutGroup

STATUSES: tuple[RewardStatus, ...] = get_args(RewardStatus)


@dataclass(frozen=True, slots=True)
class RolloutStatistics:
    """Arrays with one element per prompt [P], in the groups' order.

    `pass_rates` float64: the mean reward of the usable responses, or the share at or above the
    threshold; NaN without a usable response. `variances` float64: their population variance,
    which is p(1 - p) for rewards of 0 and 1. `informative`: whether the rewards differ, so that
    there is a gradient. `distinct`: responses with different token ids. `tokens`: those that the
    policy sampled. `statuses`: how many responses have each reward status.
    """

    prompt_ids: list[str]
    pass_rates: NDArray[np.float64]
    variances: NDArray[np.float64]
    informative: NDArray[np.bool_]
    distinct: NDArray[np.int64]
    tokens: NDArray[np.int64]
    statuses: dict[str, NDArray[np.int64]]


def rollout_statistics(
    groups: Sequence[RolloutGroup], threshold: float | None = None
) -> RolloutStatistics:
    """Return the statistics of groups; `threshold` turns rewards into passes first."""
    passes = [as_passes(group.rewards, threshold) for group in groups]
    nan = float("nan")
    return RolloutStatistics(
        prompt_ids=[group.prompt_id for group in groups],
        pass_rates=np.array([p.mean() if len(p) else nan for p in passes], dtype=np.float64),
        variances=np.array([p.var() if len(p) else nan for p in passes], dtype=np.float64),
        informative=np.array([group.informative for group in groups], dtype=bool),
        distinct=np.array([_distinct(group) for group in groups], dtype=np.int64),
        tokens=np.array([group.tokens for group in groups], dtype=np.int64),
        statuses={status: _count(groups, status) for status in STATUSES},
    )


def as_passes(rewards: NDArray[np.float64], threshold: float | None) -> NDArray[np.float64]:
    """Return rewards unchanged, or as 0 and 1 if there is a threshold to reach."""
    if threshold is None:
        return rewards
    return np.asarray(rewards >= threshold, dtype=np.float64)


def _distinct(group: RolloutGroup) -> int:
    return len({response.ids.tobytes() for response in group.responses})


def _count(groups: Sequence[RolloutGroup], status: str) -> NDArray[np.int64]:
    counts = [sum(r.reward_status == status for r in group.responses) for group in groups]
    return np.array(counts, dtype=np.int64)
