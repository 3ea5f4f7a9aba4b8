"""The range in which a prompt's gradient can be computed, and what a pass saw of the ratios.

A sampler that writes -9999 for a log-prob of minus infinity makes a ratio of infinity, and rewards
of 1e300 an advantage that float32 cannot hold. Such a prompt is measured in log space before
anything is exponentiated, its weights are set to exactly zero, so that it adds nothing to any sum,
and its status says why. Prompts share no responses, so this changes no other prompt's number.

Shape legend: R responses of all groups together, T policy tokens (padded), G groups, n all prompts
of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.gradients.objective import (
    ResponseTensors,
    log_ratios,
    response_advantages,
    token_weights,
)
from cropi.gradients.ranks import Ranks
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RATIO_OUT_OF_RANGE, REWARDS_OUT_OF_RANGE, SCORED

MAX_LOG_RATIO = 30.0
"""Largest log of a ratio, in nats. A ratio of e^30 = 1e13 makes a gradient whose square is still
far from float32's largest number, 3e38. Where even a prompt's largest ratio is below e^-30, the
policy produces none of its responses any more."""

WILD_LOG_RATIO = 10.0
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
    is a place in STATUSES. `ratios_G4` float64 holds sums over a group's policy tokens: 1,
    -log rho, rho and rho^2, each log rho within MAX_LOG_RATIO. `wild_G` float64 is the largest log
    of a ratio in the objective, 0 where it has none. `rewards_G2` are those of `current_rewards`.
    """

    weights_RT: Tensor
    code_G: Tensor
    ratios_G4: Tensor
    wild_G: Tensor
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
    """Whether ratios and advantages of each group are in range: int64 [G], places in STATUSES."""
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


@dataclass(frozen=True)
class RatioSummary:
    """How far a policy is from the sampler of some prompts' responses.

    `kl` is the mean of -log rho over the `tokens`, an estimate of KL(sampler || policy) per token
    in nats; `effective_share` is (sum rho)^2 / (tokens sum rho^2), 1 where all ratios are equal.
    """

    tokens: int
    kl: float
    effective_share: float
    wild: tuple[int, ...] = ()
    """Places of prompts in range of which one ratio is above e^WILD_LOG_RATIO."""
    mean_ratio: float = 1.0

    @property
    def ratio_squares(self) -> float:
        """Sum of rho^2."""
        return self.mean_ratio**2 * self.tokens / self.effective_share

    @property
    def k3(self) -> float:
        """Mean of rho - 1 - log rho, the estimate of the same KL that is never negative.

        Log-probs in another order leave the mean of log rho as it is, but not this.
        """
        return self.mean_ratio - 1 + self.kl

    @property
    def deviation(self) -> float:
        """How many standard errors the mean of rho is from 1.

        Whatever the policy, a sampler's own log-probs make rho 1 in expectation at every token
        given those before it, so that tokens' deviations are uncorrelated and their squares add up.
        """
        squares = self.ratio_squares - 2 * self.tokens * self.mean_ratio + self.tokens
        return self.tokens * (self.mean_ratio - 1) / math.sqrt(max(squares, 1e-12))


def joined_ratios(parts: Sequence[tuple[int, RatioSummary | None]]) -> RatioSummary | None:
    """The summary of passes over neighbouring prompts, each with the place of its first one."""
    counted = [(first, each) for first, each in parts if each is not None]
    tokens = sum(each.tokens for _, each in counted)
    if not tokens:
        return None
    mean = sum(each.mean_ratio * each.tokens for _, each in counted) / tokens
    squares = sum(each.ratio_squares for _, each in counted)
    return RatioSummary(
        tokens,
        sum(each.kl * each.tokens for _, each in counted) / tokens,
        mean**2 * tokens / squares,
        tuple(first + place for first, each in counted for place in each.wild),
        mean,
    )


@dataclass
class PassRecord:
    """What a pass saw of each prompt's numbers; filled batch by batch, read once at the end.

    Nothing is copied from the device meanwhile, which would wait for it.
    """

    prompts: int
    _batches: list[tuple[Tensor, GroupWeights]] = field(default_factory=list)

    def add(self, index_P: Tensor, weights: GroupWeights) -> None:
        """Note a batch of prompts, given by their places."""
        no_weights = weights.weights_RT.new_zeros(0)
        self._batches.append((index_P, replace(weights, weights_RT=no_weights)))

    def join(self, ranks: Ranks) -> None:
        """Add what the other ranks noted of their prompts."""
        if ranks.several:
            noted = [(index_P.cpu(), weights.cpu()) for index_P, weights in self._batches]
            self._batches = list(chain.from_iterable(ranks.gather(noted)))

    @property
    def statuses(self) -> list[str]:
        """The status of each prompt [n]."""
        statuses = [SCORED] * self.prompts
        for index_P, weights in self._batches:
            for place, code in zip(index_P.tolist(), weights.code_G.tolist(), strict=True):
                statuses[place] = STATUSES[code]
        return statuses

    @property
    def current_rewards(self) -> NDArray[np.float64]:
        """Mean reward under the policy and effective share of each prompt [n, 2].

        NaN where ratios or rewards are out of range, or the objective has no ratios.
        """
        rewards = np.full((self.prompts, 2), np.nan)
        for index_P, weights in self._batches:
            in_range_G = (weights.code_G == 0).cpu().numpy()
            places_P = index_P.cpu().numpy()[in_range_G]
            rewards[places_P] = weights.rewards_G2.cpu().numpy()[in_range_G]
        return rewards

    @property
    def ratios(self) -> RatioSummary | None:
        """The ratios of all prompts in range; None where there are none."""
        parts = [
            weights.ratios_G4[weights.code_G == 0].sum(0).cpu().numpy()
            for _, weights in self._batches
        ]
        tokens, kl, total, squares = np.sum(parts, axis=0) if parts else np.zeros(4)
        if not tokens:
            return None
        share = float(total**2 / squares / tokens)
        return RatioSummary(
            int(tokens), float(kl / tokens), share, self._wild, float(total / tokens)
        )

    @property
    def _wild(self) -> tuple[int, ...]:
        places: list[int] = []
        for index_P, weights in self._batches:
            is_wild = (weights.code_G == 0) & (weights.wild_G > WILD_LOG_RATIO)
            places += index_P[is_wild.to(index_P.device)].tolist()
        return tuple(sorted(places))
