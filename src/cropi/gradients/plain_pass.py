"""Gradients by plain autograd, one prompt after the other, for what the fast path does not cover.

Under FSDP2 all ranks compute the same prompt, because backward takes the mean over the ranks. The
first one gives its gradient to the consumers, whole for one parameter at a time; the others give
zeros, so that what consumers add up over the ranks is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cropi.gradients.collation import PreparedGroup
from cropi.gradients.consumers import GradientConsumer
from cropi.gradients.contributions import matrix_shape
from cropi.gradients.pass_record import PassRecord
from cropi.gradients.ranks import Ranks, full_tensor
from cropi.gradients.self_check import prompt_gradient, prompt_weights, response_gradients
from cropi.gradients.settings import ObjectiveConfig
from cropi.progress import Advance


@dataclass(frozen=True)
class PlainPass:
    """Gives consumers the gradients that autograd computes; returns the tokens it took."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    objective: ObjectiveConfig
    ranks: Ranks

    def run(
        self,
        prepared: Sequence[PreparedGroup],
        consumers: Sequence[GradientConsumer],
        advance: Advance,
        record: PassRecord,
    ) -> int:
        """The gradient of each prompt; `record` notes which are in range."""
        for group in prepared:
            index_P = torch.tensor([group.index], device=self._device)
            weights = prompt_weights(self.model, group, self.objective)
            if self.ranks.rank == 0:
                record.add(index_P, weights)
            gradients = prompt_gradient(self.model, self.parameters, group, self.objective, weights)
            self._emit(consumers, index_P, {n: g.unsqueeze(0) for n, g in gradients.items()})
            advance(1)
        return sum(sum(g.row_lengths[n] for n in g.unique_index) for g in prepared)

    def run_by_response(
        self,
        prepared: Sequence[PreparedGroup],
        consumers: Sequence[GradientConsumer],
        advance: Advance,
    ) -> int:
        """The gradient of each unique response."""
        for group in prepared:
            weights_RT = prompt_weights(self.model, group, self.objective).weights_RT
            firsts = [group.unique_index.index(n) for n in range(len(group.unique_ids))]
            gradients = response_gradients(self.model, self.parameters, group, weights_RT[firsts])
            index_P = group.index + torch.arange(len(firsts), device=self._device)
            self._emit(consumers, index_P, gradients)
            advance(1)
        return sum(sum(group.row_lengths) for group in prepared)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _emit(
        self,
        consumers: Sequence[GradientConsumer],
        index_P: Tensor,
        gradients: Mapping[str, Tensor],
    ) -> None:
        """Give consumers the gradients of some prompts: by parameter name [P, *its shape]."""
        for consumer in consumers:
            consumer.begin(index_P)
        for name, gradient in gradients.items():
            height, width = matrix_shape(gradient.shape[1:])
            values = full_tensor(gradient).float().reshape(-1, height, width)
            for consumer in consumers:
                consumer.consume(name, slice(0, height), self._on_first_rank(values))
        for consumer in consumers:
            consumer.finish()

    def _on_first_rank(self, values: Tensor) -> Tensor:
        """The values on the first rank, and zeros on all others."""
        return values if self.ranks.rank == 0 else torch.zeros_like(values)
