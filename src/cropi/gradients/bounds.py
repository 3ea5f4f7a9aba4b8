"""The range in which a prompt's gradient can be computed, and the weights of its tokens.

A sampler that writes -9999 for a log-prob of minus infinity makes a ratio of infinity, and rewards
of 1e300 an advantage that float32 cannot hold. Such a prompt is measured in log space before
anything is exponentiated, its weights are set to exactly zero, so that it adds nothing to any sum,
and its status says why. Prompts share no responses, so this changes no other prompt's number.

Shape legend: R responses of all groups together, T policy tokens (padded), G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cropi.gradients.objective import (
    ResponseTensors,
    log_ratios,
    response_advantages,
    token_weights,
)
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RATIO_OUT_OF_RANGE, REWARDS_OUT_OF_RANGE, SCORED

MAX_LOG_RATIO = 30.0
"""Largest log of a ratio, in nats. A ratio of e^30 = 1e13 makes a gradient whose square is still
far from float32's largest number, 3e38. Where even a prompt's largest ratio is below e^-30, the
policy produces none of its responses any more."""

EXTREME_LOG_RATIO = 10.0
"""Nats from which on one token outweighs all others of its prompt, and the prompt is named."""

ADVANTAGES = (2.0**-40, 2.0**40)
"""Range of a prompt's largest advantage: 1e-12 to 1e12. Ordinary ones are about 1."""

WEIGHTS = (2.0**-50, 2.0**50)
"""Range of a prompt's largest dJ/dlogp: 1e-15 to 1e15."""

MAX_LOG_WEIGHT = 5.0
"""Largest size of a whole response's log-weight where rewards are averaged again; beyond, it counts
as this, so that no response outweighs another by more than e^10 (DARE, arXiv 2605.09188)."""

STATUSES = (SCORED, RATIO_OUT_OF_RANGE, REWARDS_OUT_OF_RANGE)
"""What a code in `GroupWeights.code_G` means."""


@dataclass(frozen=True)
class GroupWeights:
    """The weights of some groups' tokens, and whether the groups are in range.

    `weights_RT` float64 is dJ/dlogp, exactly zero for a group that is out of range; `code_G` int64
    is an index into STATUSES. `ratios_G4` float64 holds sums over a group's policy tokens: 1,
    -log rho, rho and rho^2, each log rho within MAX_LOG_RATIO. `extreme_G` float64 is the largest
    log of a ratio in the objective, 0 where it has none. `rewards_G2` are those of
    `current_rewards`.
    """

    weights_RT: Tensor
    code_G: Tensor
    ratios_G4: Tensor
    extreme_G: Tensor
    rewards_G2: Tensor

    def cpu(self) -> GroupWeights:
        """The same on the CPU."""
        return GroupWeights(*(getattr(self, each.name).cpu() for each in fields(self)))


def group_weights(
    logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig
) -> GroupWeights:
    """dJ/dlogp of groups in range, for the policy's log-probs float64 [R, T].

    A log-prob that is NaN is not out of range: it stays NaN, and becomes an error later.
    """
    weights_RT = token_weights(logp_RT, responses, config)
    highest_G = _highest_log_ratio(logp_RT, responses, config)
    code_G = range_codes(logp_RT, responses, config)
    weight_G = responses.group_largest(weights_RT.abs().amax(1))
    code_G = code_G.masked_fill(_outside(weight_G, WEIGHTS) & (code_G == 0), 1)
    return GroupWeights(
        weights_RT.masked_fill((code_G > 0)[responses.group_R, None], 0.0),
        code_G,
        _ratio_sums(logp_RT, responses),
        highest_G,
        current_rewards(logp_RT, responses) if config.uses_ratios else _unknown(responses),
    )


def range_codes(logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig) -> Tensor:
    """Whether ratios and advantages of each group are in range: int64 [G], of STATUSES."""
    # Where even the largest is tiny, the policy produces none of the responses.
    ratio_G = _highest_log_ratio(logp_RT, responses, config).abs() > MAX_LOG_RATIO
    sizes_R = response_advantages(logp_RT, responses, config).abs()
    advantage_G = _outside(responses.group_largest(sizes_R), ADVANTAGES)
    return ratio_G.long() + 2 * (advantage_G & ~ratio_G).long()


def _highest_log_ratio(
    logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig
) -> Tensor:
    """Log of the largest ratio in the objective of each group [G]; 0 without ratios.

    Where tokens and sequences have one, it is the one further from 0.
    """
    token_RT, sequence_R = log_ratios(logp_RT, responses)
    highest_G = logp_RT.new_zeros(responses.groups)
    used = []
    if config.ratio == "token":
        used.append(token_RT.masked_fill(~responses.mask_RT, -math.inf).amax(1))
    if config.ratio == "sequence" or config.self_normalised:
        used.append(sequence_R)
    for highest_R in used:
        of_kind_G = responses.group_largest(highest_R)
        highest_G = torch.where(of_kind_G.abs() > highest_G.abs(), of_kind_G, highest_G)
    return highest_G


def _outside(values_G: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Which values are out of bounds; zero is not, and neither is NaN."""
    low, high = bounds
    return ((values_G < low) & (values_G > 0)) | (values_G > high)


def _ratio_sums(logp_RT: Tensor, responses: ResponseTensors) -> Tensor:
    token_RT, _ = log_ratios(logp_RT, responses)
    log_RT = token_RT.nan_to_num(0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_RT = log_RT.exp()
    terms = (torch.ones_like(log_RT), -log_RT, ratio_RT, ratio_RT.square())
    sums_R4 = torch.stack([(term * responses.mask_RT).sum(1) for term in terms], 1)
    return sums_R4.new_zeros(responses.groups, 4).index_add(0, responses.group_R, sums_R4)


def current_rewards(logp_RT: Tensor, responses: ResponseTensors) -> Tensor:
    """Mean reward of each group under the policy, and the effective share of its responses [G, 2].

    Self-normalised importance sampling over whole responses (DARE, arXiv 2605.09188): with
    w = pi(y) / beta(y) they are sum w r / sum w and (sum w)^2 / (K sum w^2). Of equal rewards the
    mean is the same under any policy.
    """
    token_RT, _ = log_ratios(logp_RT, responses)
    log_R = token_RT.nan_to_num(0.0).sum(1).clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)
    weight_R = log_R.exp()
    total_G, square_G = responses.group_sum(weight_R), responses.group_sum(weight_R.square())
    count_G = responses.group_sum(torch.ones_like(weight_R))
    mean_G = responses.group_mean(responses.rewards_R, weight_R)
    return torch.stack([mean_G, total_G.square() / (count_G * square_G)], 1)


def _unknown(responses: ResponseTensors) -> Tensor:
    """No rewards under the policy: without ratios, log-probs may not be a sampler's at all."""
    return responses.behaviour_RT.new_full((responses.groups, 2), math.nan)
