"""What a pass over prompts saw of their numbers: who is in range, how far the policy has moved.

Nothing of it takes a forward pass of its own: the weights of a gradient need the log-probs anyway.

Shape legend: P prompts of a batch, G groups, n all prompts of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cropi.gradients.bounds import EXTREME_LOG_RATIO, STATUSES, GroupWeights
from cropi.gradients.ranks import Ranks
from cropi.schema import SCORED, RolloutGroup


@dataclass(frozen=True)
class RatioSummary:
    """How far a policy is from the sampler of some prompts' responses.

    `kl` is the mean of -log rho over the `tokens`, an estimate of KL(sampler || policy) per token
    in nats; `effective_share` is (sum rho)^2 / (tokens sum rho^2), 1 where all ratios are equal.
    """

    tokens: int
    kl: float
    effective_share: float
    extreme: tuple[int, ...] = ()
    """Indices of prompts in range of which one ratio is above e^EXTREME_LOG_RATIO."""
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
    """The summary of passes over neighbouring prompts, each with the index of its first one."""
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
        tuple(first + index for first, each in counted for index in each.extreme),
        mean,
    )


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did: tokens through the model, and which path it took.

    `statuses` say of each prompt whether it has a gradient ("scored") or why it was left out with
    an exactly zero one; `ratios` compare the policy with the sampler over the other prompts, and
    `current_rewards` float64 [n, 2] are their mean rewards under the policy, each with the
    effective share of its responses (`bounds.current_rewards`). `own_distances` float64 [n] are in
    nats per token, and 0 but for rounding: how far the policy is from the sampler of prompts that
    it sampled itself; NaN for all others.
    """

    tokens: int
    path: str
    statuses: list[str] = field(default_factory=list)
    ratios: RatioSummary | None = None
    current_rewards: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    own_distances: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def prompts(self) -> int:
        """How many prompts there were."""
        return len(self.statuses)

    def reordered(self, order: Sequence[int] | NDArray[np.int64]) -> ExtractionReport:
        """The report on the same prompts in another order: `order[n]` is the n-th's index here."""
        ratios = self.ratios
        if ratios is not None:
            place_of = {int(old): new for new, old in enumerate(order)}
            ratios = replace(ratios, extreme=tuple(sorted(place_of[old] for old in ratios.extreme)))
        statuses = [self.statuses[old] for old in order]
        return replace(
            self,
            statuses=statuses,
            ratios=ratios,
            current_rewards=self.current_rewards[order],
            own_distances=self.own_distances[order],
        )


def sampled_by(group: RolloutGroup, revision: str) -> bool:
    """Whether weights sampled a prompt's responses, with log-probs that they themselves give."""
    return (
        bool(revision)
        and group.policy.revision == revision
        and group.exact
        and not group.logprobs_are_cut
        and not group.logprobs_at_another_temperature
        and all(response.policy_versions is None for response in group.responses)
    )


@dataclass
class PassRecord:
    """What a pass saw of each prompt's numbers; filled batch by batch, read once at the end.

    Nothing is copied from the device meanwhile, which would wait for it.
    """

    prompts: int
    _batches: list[tuple[Tensor, GroupWeights]] = field(default_factory=list)

    def add(self, index_P: Tensor, weights: GroupWeights) -> None:
        """Record a batch of prompts, given by index."""
        no_weights = weights.weights_RT.new_zeros(0)
        self._batches.append((index_P, replace(weights, weights_RT=no_weights)))

    def join(self, ranks: Ranks) -> None:
        """Add what the other ranks noted of their prompts."""
        if ranks.several:
            noted = [(index_P.cpu(), weights.cpu()) for index_P, weights in self._batches]
            self._batches = list(chain.from_iterable(ranks.gather(noted)))

    def report(self, tokens: int, path: str, own_n: NDArray[np.bool_]) -> ExtractionReport:
        """All of it; `own_n` says which prompts the policy is said to have sampled."""
        distances = np.where(own_n, self._distances, np.nan)
        return ExtractionReport(
            tokens, path, self.statuses, self.ratios, self.current_rewards, distances
        )

    @property
    def statuses(self) -> list[str]:
        """The status of each prompt [n]."""
        statuses = [SCORED] * self.prompts
        for index_P, weights in self._batches:
            for index, code in zip(index_P.tolist(), weights.code_G.tolist(), strict=True):
                statuses[index] = STATUSES[code]
        return statuses

    @property
    def current_rewards(self) -> NDArray[np.float64]:
        """Mean reward under the policy and effective share of each prompt [n, 2].

        NaN where ratios or rewards are out of range, or the objective has no ratios.
        """
        rewards = np.full((self.prompts, 2), np.nan)
        for index_P, weights in self._batches:
            in_range_G = (weights.code_G == 0).cpu().numpy()
            indices_P = index_P.cpu().numpy()[in_range_G]
            rewards[indices_P] = weights.rewards_G2.cpu().numpy()[in_range_G]
        return rewards

    @property
    def _distances(self) -> NDArray[np.float64]:
        """Mean of rho - 1 - log rho over each prompt's tokens [n]; NaN where out of range."""
        distances = np.full(self.prompts, np.nan)
        for index_P, weights in self._batches:
            in_range_G = (weights.code_G == 0).cpu().numpy()
            tokens_G, kl_G, total_G, _ = weights.ratios_G4.cpu().numpy().T
            values_G = (total_G - tokens_G + kl_G) / tokens_G
            distances[index_P.cpu().numpy()[in_range_G]] = values_G[in_range_G]
        return distances

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
            int(tokens), float(kl / tokens), share, self._extreme, float(total / tokens)
        )

    @property
    def _extreme(self) -> tuple[int, ...]:
        indices: list[int] = []
        for index_P, weights in self._batches:
            is_extreme = (weights.code_G == 0) & (weights.extreme_G > EXTREME_LOG_RATIO)
            indices += index_P[is_extreme.to(index_P.device)].tolist()
        return tuple(sorted(indices))
