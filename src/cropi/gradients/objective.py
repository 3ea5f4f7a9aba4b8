"""The off-policy objective of one prompt, as pure tensors (docs/method.md).

    J(s) = 1/K sum_k 1/|y_k| sum_t rho_kt A_k,    rho_kt = pi(y_kt | ...) / beta(y_kt | ...)

Models and batches do not appear here: log-probs go in, one number per group comes out. The gradient
follows the paper's first-order surrogate: ratios carry gradient, advantages do not. Everything is
float64, because the tensors are small and exp() of a log-ratio amplifies rounding.

|y| and the sum over t count the policy's tokens; tokens that are not the policy's contribute
nothing (they are left out of T, or false in `mask_RT`).

Shape legend: R responses of all groups together, T policy tokens (padded), G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import REWARD_TOLERANCE

ADVANTAGE_EPSILON = 1e-4

ORDINARY_EXPONENT = 64
"""Rewards within 2^-64 and 2^64 are squared as they are, others after a change of scale."""

CANCELLATION = 1e-12
"""A sum smaller than this share of its absolute terms is float64 rounding."""


@dataclass(frozen=True)
class ResponseTensors:
    """What the objective needs of the responses, besides the policy's log-probs.

    `behaviour_RT` float64 log-probs of the sampler, in nats, finite everywhere; `mask_RT` bool,
    true on the policy's tokens; `rewards_R` float64; `group_R` int64, the group each response
    belongs to, in [0, groups).
    """

    behaviour_RT: Tensor
    mask_RT: Tensor
    rewards_R: Tensor
    group_R: Tensor
    groups: int

    @property
    def lengths_R(self) -> Tensor:
        """|y|, the policy's tokens of each response, as float64."""
        return self.mask_RT.sum(1).to(torch.float64)

    def group_sum(self, values_R: Tensor) -> Tensor:
        """Sum one value per response over each group -> [G]."""
        return values_R.new_zeros(self.groups).index_add(0, self.group_R, values_R)

    def group_mean(self, values_R: Tensor, weights_R: Tensor) -> Tensor:
        """Weighted mean of one value per response over each group -> [G]."""
        return self.group_sum(values_R * weights_R) / self.group_sum(weights_R)

    def group_largest(self, values_R: Tensor) -> Tensor:
        """The largest value of each group [G]; NaN where there is one."""
        start_G = values_R.new_full((self.groups,), -math.inf)
        return start_G.scatter_reduce(0, self.group_R, values_R, "amax")


def advantages(responses: ResponseTensors, weights_R: Tensor, scale_by_std: bool) -> Tensor:
    """Group-relative advantages A_R = (r - mean) / (std + 1e-4), std with K - 1.

    `weights_R` are ones (the plain sample mean and std), or the sequence ratios where mean and std
    are self-normalised. Rewards that differ by rounding alone have the advantage 0.
    """
    scale_R = _reward_scale(responses)
    rewards_R = responses.rewards_R / scale_R
    mean_G = responses.group_mean(rewards_R, weights_R)
    centred_R = rewards_R - mean_G[responses.group_R]
    centred_R = centred_R.masked_fill(_rewards_equal(rewards_R, responses), 0.0)
    if not scale_by_std:
        return centred_R * scale_R
    count_G = responses.group_sum(torch.ones_like(centred_R))
    variance_G = responses.group_mean(centred_R.square(), weights_R)
    std_G = (variance_G * count_G / (count_G - 1)).sqrt()
    return centred_R / (std_G[responses.group_R] + ADVANTAGE_EPSILON / scale_R)


def _reward_scale(responses: ResponseTensors) -> Tensor:
    """A power of two [R] per group by which rewards can be divided before they are squared.

    It is 1 for ordinary rewards, so that dividing by it changes no bit.
    """
    largest_G = responses.group_largest(responses.rewards_R.abs())
    exponent_G = torch.frexp(largest_G).exponent
    exponent_G = exponent_G.masked_fill(exponent_G.abs() <= ORDINARY_EXPONENT, 0)
    # Neither 2^1024 nor 1 / 2^-1074 is a float64.
    return torch.exp2(exponent_G.clamp(-1000, 1000).to(largest_G.dtype))[responses.group_R]


def _rewards_equal(rewards_R: Tensor, responses: ResponseTensors) -> Tensor:
    """Of each response [R], whether its group's rewards are equal but for rounding."""
    high_G, low_G = responses.group_largest(rewards_R), -responses.group_largest(-rewards_R)
    size_G = torch.maximum(high_G.abs(), low_G.abs())
    return (high_G - low_G <= REWARD_TOLERANCE * size_G)[responses.group_R]


def objective(logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig) -> Tensor:
    """Return J [G] of each group; differentiable in `logp_RT` float64 [R, T].

    `constant_length` must be set where `normalisation` is "constant".
    """
    mask_RT = responses.mask_RT.to(logp_RT.dtype)
    log_ratio_RT, log_sequence_R = log_ratios(logp_RT, responses)
    advantages_R1 = response_advantages(logp_RT, responses, config).unsqueeze(1)
    surrogate_RT = _surrogate(logp_RT, log_ratio_RT, log_sequence_R.exp(), advantages_R1, config)
    return _normalise((surrogate_RT * mask_RT).sum(1), responses, config)


def log_ratios(logp_RT: Tensor, responses: ResponseTensors) -> tuple[Tensor, Tensor]:
    """Log-ratios of tokens [R, T], 0 at padding, and of sequences [R]: their means."""
    mask_RT = responses.mask_RT.to(logp_RT.dtype)
    log_ratio_RT = (logp_RT - responses.behaviour_RT) * mask_RT
    return log_ratio_RT, log_ratio_RT.sum(1) / responses.lengths_R


def response_advantages(
    logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig
) -> Tensor:
    """The advantage of each response [R] under the config; it carries no gradient."""
    _, log_sequence_R = log_ratios(logp_RT.detach(), responses)
    ones_R = torch.ones_like(log_sequence_R)
    weights_R = log_sequence_R.exp() if config.self_normalised else ones_R
    return advantages(responses, weights_R, config.scale_by_std)


def _surrogate(
    logp_RT: Tensor,
    log_ratio_RT: Tensor,
    sequence_R: Tensor,
    advantages_R1: Tensor,
    config: ObjectiveConfig,
) -> Tensor:
    """The term of each token, before any averaging."""
    if config.ratio == "none":
        return logp_RT * advantages_R1
    if config.ratio == "token":
        ratio_RT = log_ratio_RT.exp()
    else:
        ratio_RT = sequence_R.unsqueeze(1).expand_as(log_ratio_RT)
    surrogate_RT = ratio_RT * advantages_R1
    if config.clip is None:
        return surrogate_RT
    clipped_RT = ratio_RT.clamp(1 - config.clip.low, 1 + config.clip.high) * advantages_R1
    return torch.minimum(surrogate_RT, clipped_RT)


def _normalise(sums_R: Tensor, responses: ResponseTensors, config: ObjectiveConfig) -> Tensor:
    """Average the token sums of the responses within each group."""
    if config.normalisation == "token":
        return responses.group_sum(sums_R) / responses.group_sum(responses.lengths_R)
    if config.normalisation == "constant":
        assert config.constant_length is not None, "constant normalisation needs its length"
        means_R = sums_R / config.constant_length
    else:
        means_R = sums_R / responses.lengths_R
    return responses.group_sum(means_R) / responses.group_sum(torch.ones_like(means_R))


def token_weights(logp_RT: Tensor, responses: ResponseTensors, config: ObjectiveConfig) -> Tensor:
    """Return dJ/dlogp, float64 [R, T]: the weight of each token's score function.

    The groups' objectives do not share responses, so one backward through their sum gives all.
    """
    leaf_RT = logp_RT.detach().to(torch.float64).requires_grad_(True)
    with torch.enable_grad():
        (weights_RT,) = torch.autograd.grad(objective(leaf_RT, responses, config).sum(), leaf_RT)
    return weights_RT


def sum_over_equals(weights_RT: Tensor, unique_R: Tensor, unique: int) -> Tensor:
    """Add the weights of equal responses -> float64 [unique, T].

    A verifier may reward equal responses differently, and then their weights can cancel. What
    remains is rounding, in an arbitrary direction; it is set to zero.
    """
    shape = (unique, weights_RT.shape[1])
    summed_DT, size_DT = (
        weights_RT.new_zeros(shape).index_add_(0, unique_R, values)
        for values in (weights_RT, weights_RT.abs())
    )
    # Written so that NaN stays NaN.
    return summed_DT.masked_fill(summed_DT.abs() <= CANCELLATION * size_DT, 0.0)
