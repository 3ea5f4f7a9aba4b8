"""Gradients of single responses: the terms that a prompt's gradient is the sum of.

    g(s) = sum_k g_k,    g_k = sum_t dJ/dlogp_kt dlogp_kt/dtheta

dJ/dlogp is that of the whole group: advantages and divisors are the prompt's, so that the terms add
up to its gradient. Responses of a group that are equal in tokens, log-probs and reward have one g.
A prompt is not shared by its responses here: gradients at its tokens would belong to all of them.

Shape legend: D unique responses, P prompts of a batch, R usable responses, K those of one prompt,
T policy tokens (padded), C coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.gradients.bounds import group_weights
from cropi.gradients.collation import PreparedGroup, PromptBatch, prepare
from cropi.gradients.consumers import BLOCK, Directions, block_dots, block_squares
from cropi.gradients.forward import usable_logprobs
from cropi.gradients.ranks import Ranks
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RolloutGroup


class ResponseGroups:
    """Groups by their responses: which gradients `GradientExtractor.run_by_response` streams.

    `indices` int64 [K] are, for each prompt, the indices of its usable responses among the `count`
    unique ones of all prompts.
    """

    def __init__(self, groups: Sequence[RolloutGroup]) -> None:
        self.groups = groups
        self.prepared: list[PreparedGroup] = []
        self.count = 0
        for group in groups:
            self.prepared.append(prepare(self.count, group, by_response=True))
            self.count += len(self.prepared[-1].unique_ids)
        self.indices: list[NDArray[np.int64]] = [
            group.index + np.array(group.unique_index, dtype=np.int64) for group in self.prepared
        ]

    def multiplicities(self) -> NDArray[np.float32]:
        """How many usable responses each unique one stands for [count]."""
        counts = np.bincount(np.concatenate(self.indices), minlength=self.count)
        return counts.astype(np.float32)

    def owners(self) -> NDArray[np.int64]:
        """The prompt of each unique response [count], as its index into `groups`."""
        counts = [len(group.unique_ids) for group in self.prepared]
        return np.repeat(np.arange(len(counts)), counts)


@dataclass(frozen=True)
class ResponseWeights:
    """The token weights that give each unique response its own term of the gradient."""

    objective: ObjectiveConfig

    def __call__(self, logp_DT: Tensor, batch: PromptBatch) -> Tensor:
        """Weights dJ/dlogp of one of the equal responses that each unique one stands for."""
        logp_RT = usable_logprobs(logp_DT, batch)
        weights_RT = group_weights(logp_RT, batch.responses, self.objective).weights_RT
        weights_DT = weights_RT.new_zeros(len(logp_DT), weights_RT.shape[1])
        return weights_DT.index_copy_(0, batch.unique_R, weights_RT)


class ResponseProducts:
    """Collects |g_k|^2 and <g_k, g> of each unique response, g the sum over its prompt's.

    With them the norm of the gradient is known that a prompt has without one of its responses. The
    sum is that of the batch, which holds a prompt's responses together, or given (`take_sum`).
    """

    _sum: Directions | None = None

    def __init__(self, responses: ResponseGroups, device: torch.device) -> None:
        self._owner = torch.from_numpy(responses.owners()).to(device)
        self._times = torch.from_numpy(responses.multiplicities()).to(device)
        zeros = torch.zeros(2, responses.count, dtype=torch.float64, device=device)
        self._squares, self._with_sum = zeros

    def take_sum(self, gradient: Directions | None) -> None:
        """The gradient of the prompt whose responses come next, in parts; None: they come whole."""
        self._sum = gradient

    def begin(self, index_P: Tensor) -> None:
        """A batch of unique responses starts; those of a prompt are neighbours."""
        self._index_D, self._times_D = index_P, self._times[index_P]
        _, counts = torch.unique_consecutive(self._owner[index_P], return_counts=True)
        self._counts = counts.tolist()

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add the products of some rows."""
        own_DC = gradient_PRI.flatten(1)
        self._squares.index_add_(0, self._index_D, block_squares(own_DC))
        self._with_sum.index_add_(0, self._index_D, self._dots(name, rows, own_DC))

    def _dots(self, name: str, rows: slice | Tensor, own_DC: Tensor) -> Tensor:
        """Inner products float64 [D] with rows of the sums."""
        if self._sum is not None:
            return block_dots(own_DC, self._sum.read(name, rows).flatten(1)).squeeze(1)
        by_prompt = zip(
            torch.split(own_DC, self._counts), torch.split(self._times_D, self._counts), strict=True
        )
        return torch.cat([_dots_with_sum(own_KC, times_K) for own_KC, times_K in by_prompt])

    def finish(self) -> None:
        """Nothing to do."""

    def add_up(self, ranks: Ranks) -> None:
        """Every rank has the products of all responses afterwards."""
        ranks.add_up(self._squares)
        ranks.add_up(self._with_sum)

    @property
    def squares(self) -> NDArray[np.float64]:
        """|g_k|^2 [n]."""
        return np.asarray(self._squares.cpu().numpy())

    @property
    def with_sum(self) -> NDArray[np.float64]:
        """<g_k, g> [n]."""
        return np.asarray(self._with_sum.cpu().numpy())


def _dots_with_sum(own_KC: Tensor, times_K: Tensor) -> Tensor:
    """Inner products float64 [K] of a prompt's terms with their sum, by blocks."""
    blocks = [block @ (times_K @ block) for block in torch.split(own_KC, BLOCK, 1)]
    return torch.stack(blocks).sum(0, dtype=torch.float64)
