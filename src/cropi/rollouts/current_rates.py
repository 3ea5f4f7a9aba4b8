"""Pass rates under a policy that has moved on, from rollouts that are already there.

Self-normalised importance sampling over whole responses, as in DARE (arXiv 2605.09188): nothing is
sampled, and prompts whose rewards are all equal are not even read, as no weights change their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cropi.rollouts.number_checks import require_log_ratios
from cropi.rollouts.statistics import as_passes, rollout_statistics
from cropi.schema import RolloutGroup

if TYPE_CHECKING:
    from torch import nn

LEAST_EFFECTIVE = 2.0
"""Responses that have to count effectively; below, a prompt keeps the plain mean."""


def current_pass_rates(
    model: nn.Module,
    rollouts: Sequence[RolloutGroup],
    threshold: float | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """The pass rate [P] of each prompt under `model`; NaN without a usable response.

    `threshold` turns rewards into passes, `batch_tokens` bounds a forward pass, and `progress` is
    called with the number of prompts read since the last call. Raises InputError for log-probs that
    ratios cannot be formed from, and rollouts that the model cannot have sampled.
    """
    from cropi.gradients.logprobs import LogprobReader, read_current_rewards

    passes = [_with_passes(group, threshold) for group in rollouts]
    rates_P = rollout_statistics(passes).pass_rates
    places = np.flatnonzero([group.informative for group in passes])
    read = [passes[place] for place in places]
    if not read:
        return rates_P
    require_log_ratios("the rollouts", read)
    mean_N, share_N = read_current_rewards(LogprobReader(model, batch_tokens), read, progress).T
    effective_N = share_N * [len(group.usable) for group in read]
    rates_P[places] = np.where(effective_N >= LEAST_EFFECTIVE, mean_N, rates_P[places])
    return rates_P


def tokens_read(rollouts: Sequence[RolloutGroup], threshold: float | None = None) -> int:
    """Tokens that `current_pass_rates` puts through the model, each prompt once."""
    read = [g for g in rollouts if _with_passes(g, threshold).informative]
    return sum(len(g.prompt_ids) + g.tokens for g in read)


def _with_passes(group: RolloutGroup, threshold: float | None) -> RolloutGroup:
    """The usable responses of a group, with passes for rewards."""
    passes = as_passes(group.rewards, threshold).tolist()
    usable = zip(group.usable, passes, strict=True)
    return replace(group, responses=[replace(r, reward=value) for r, value in usable])
