"""Prompts whose responses do not fit into one pass: some at a time, and one gradient in the end.

A prompt's gradient is a sum over its responses, but its norm is not, and neither are the weights of
tokens, which depend on all of a group. So log-probs of every part are read first, by forward passes
alone, and give all tokens the weights that the whole group gives them. Then the gradients of the
parts are added up in one dense fp32 vector, and consumers get the sum as they get any prompt's.

Memory is that of one part and of 4 bytes per parameter, however many responses there are. The price
is the forward pass, a third more, and a prompt that every part repeats.

Shape legend: D unique responses of the prompt, T policy tokens (padded), P = 1 prompt, R rows,
I width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cropi.errors import InputError
from cropi.gradients.batching import BatchPlanner, LongGroup, RankBatch, batches_of_rank
from cropi.gradients.bounds import GroupWeights, group_weights
from cropi.gradients.collation import PreparedGroup, PromptBatch, response_tensors
from cropi.gradients.consumers import Directions, FactorConsumer, GradientConsumer
from cropi.gradients.contributions import DenseContribution, matrix_shape
from cropi.gradients.forward import TokenWeights, forward_logits, log_probs
from cropi.gradients.hooks import TILE_BYTES
from cropi.gradients.objective import sum_over_equals
from cropi.gradients.pass_record import PassRecord
from cropi.gradients.ranks import ALONE, Ranks
from cropi.gradients.settings import ObjectiveConfig, TargetMemory

GIB = 1 << 30


class StreamedPass(Protocol):
    """The pass of `GradientExtractor` over some batches."""

    def __call__(
        self,
        rank_batches: Iterable[RankBatch],
        consumers: Sequence[GradientConsumer],
        weigh: TokenWeights,
        *,
        by_response: bool = False,
    ) -> int:
        """Stream gradients into the consumers, and return the tokens."""


@runtime_checkable
class NeedsSum(GradientConsumer, Protocol):
    """A consumer of single responses that also needs the sum of their prompt's gradients."""

    def take_sum(self, gradient: Directions | None) -> None:
        """The gradient of the prompt whose responses come next, in parts; None: they come whole."""


def part_logprobs(
    model: nn.Module, planner: BatchPlanner, long: LongGroup, ranks: Ranks = ALONE
) -> Tensor:
    """Log-probs float64 [D, T] of a group's unique responses, read one part at a time."""
    logp_of: dict[int, Tensor] = {}
    for rank_batch in _part_batches(long, long.parts, ranks):
        with torch.no_grad(), planner.batch(rank_batch.members, rank_batch.mode) as batch:
            _, logp_DT = log_probs(forward_logits(model, batch)[0], batch)
            logp_of[rank_batch.members[0].index] = logp_DT.cpu()
    read = {start: rows for each in ranks.gather(logp_of) for start, rows in each.items()}
    longest = max(rows.shape[1] for rows in read.values())
    padded = [pad(read[start], (0, longest - read[start].shape[1])) for start in sorted(read)]
    return torch.cat(padded).to(planner.device)


def _part_batches(
    long: LongGroup, parts: Sequence[PreparedGroup], ranks: Ranks
) -> Iterable[RankBatch]:
    return batches_of_rank([([part], long.mode) for part in parts], ranks)


@dataclass(frozen=True)
class PartWeights:
    """The weights of a group's tokens, for the part whose first response is at index - `first`."""

    weights_DT: Tensor
    first: int = 0

    def __call__(self, logp_DT: Tensor, batch: PromptBatch) -> Tensor:
        """Those of the responses in the batch."""
        start = int(batch.index_P[0]) - self.first
        return self.weights_DT[start : start + len(logp_DT), : logp_DT.shape[1]]


@dataclass(frozen=True)
class _Adder:
    """A consumer that adds up the gradients of parts."""

    total: Directions

    def begin(self, index_P: Tensor) -> None:
        """Nothing to do."""

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add some rows of one part."""
        self.total.add(name, rows, gradient_PRI)

    def finish(self) -> None:
        """Nothing to do."""


@dataclass
class LongGroupPass:
    """Gives consumers the gradients of long groups, one after the other.

    The sum of a prompt's parts is held as `memory` says, in fp32 even where that is bf16; of
    several `ranks` each computes some parts and holds some rows.
    """

    model: nn.Module
    planner: BatchPlanner
    objective: ObjectiveConfig
    shapes: dict[str, tuple[int, ...]]
    ranks: Ranks
    memory: TargetMemory
    stream: StreamedPass
    tokens: int = field(default=0, init=False)

    def run(
        self, long: LongGroup, consumers: Sequence[GradientConsumer], record: PassRecord
    ) -> None:
        """Stream the gradient of one prompt; `record` notes whether it is in range."""
        bounded = self._weights(long.group, self._logprobs(long))
        index_P = torch.tensor([long.group.index], device=self.planner.device)
        if self.ranks.rank == 0:
            record.add(index_P, bounded)
        in_range = not bool(bounded.code_G.any())
        total = self._sum(long, bounded) if in_range else None
        for consumer in consumers:
            consumer.begin(index_P)
        if total is not None:
            self._emit(total, consumers)
        for consumer in consumers:
            consumer.finish()

    def run_by_response(self, long: LongGroup, consumers: Sequence[GradientConsumer]) -> None:
        """Stream the gradient of each unique response of one prompt."""
        bounded = self._weights(long.group, self._logprobs(long))
        needing = [each for each in consumers if isinstance(each, NeedsSum)]
        total = self._sum(long, bounded) if needing else None
        for consumer in needing:
            consumer.take_sum(total)
        unique_R = self._unique_index(long.group)
        shape = len(long.group.unique_ids), bounded.weights_RT.shape[1]
        own_DT = bounded.weights_RT.new_zeros(shape).index_copy_(0, unique_R, bounded.weights_RT)
        first = long.group.index
        parts = [replace(part, index=first + part.index) for part in long.parts]
        weigh = PartWeights(own_DT, first)
        rank_batches = _part_batches(long, parts, self.ranks)
        self.tokens += self.stream(rank_batches, consumers, weigh, by_response=True)
        for consumer in needing:
            consumer.take_sum(None)

    def _logprobs(self, long: LongGroup) -> Tensor:
        # Forward and backward cost three times what forward alone does.
        self.tokens += long.tokens // 3
        return part_logprobs(self.model, self.planner, long, self.ranks)

    def _unique_index(self, group: PreparedGroup) -> Tensor:
        return torch.tensor(group.unique_index, device=self.planner.device)

    def _weights(self, group: PreparedGroup, logp_DT: Tensor) -> GroupWeights:
        responses = response_tensors([group], self.planner.device)
        return group_weights(logp_DT[self._unique_index(group)], responses, self.objective)

    def _sum(self, long: LongGroup, bounded: GroupWeights) -> Directions:
        """The sum of the parts' gradients, the one direction of the result."""
        group = long.group
        unique = len(group.unique_ids)
        weights_DT = sum_over_equals(bounded.weights_RT, self._unique_index(group), unique)
        total = self._total
        for values in total.values.values():
            values.zero_()
        rank_batches = _part_batches(long, long.parts, self.ranks)
        self.tokens += self.stream(rank_batches, [_Adder(total)], PartWeights(weights_DT))
        return total

    @cached_property
    def _total(self) -> Directions:
        """What sums are made in, one after the other."""
        memory: TargetMemory = "offload" if self.memory == "offload" else "fp32"
        try:
            return Directions(self.shapes, 1, self.planner.device, memory, self.ranks)
        except torch.OutOfMemoryError as error:
            numbers = sum(torch.Size(shape).numel() for shape in self.shapes.values())
            raise InputError(
                "a prompt whose responses go through the model in parts needs its whole gradient, "
                f"{4 * numbers / self.ranks.size / GIB:.1f} GiB, which does not fit in the "
                f"device's memory; raise batch_tokens (now {self.planner.batch_tokens}) with "
                "gradient_checkpointing on, use LoRA, or set target_memory to offload"
            ) from error

    def _emit(self, total: Directions, consumers: Sequence[GradientConsumer]) -> None:
        for name, shape in self.shapes.items():
            height, width = matrix_shape(shape)
            dense: list[GradientConsumer] = []
            for consumer in consumers:
                if isinstance(consumer, FactorConsumer) and consumer.takes_factors(name):
                    whole = self._rows(total, name, slice(0, height))
                    consumer.consume_factors(name, [DenseContribution(whole)])
                else:
                    dense.append(consumer)
            limit = TILE_BYTES.get(self.planner.device.type, 1 << 28)
            step = max(1, limit // (4 * max(1, width)))
            for start in range(0, height, step) if dense else []:
                rows = slice(start, min(start + step, height))
                values_PRI = self._rows(total, name, rows)
                for consumer in dense:
                    consumer.consume(name, rows, values_PRI)

    def _rows(self, total: Directions, name: str, rows: slice) -> Tensor:
        """Some rows of the sum on the first rank, and zeros on all others: they add up later."""
        values_PRI = total.read(name, rows)
        return values_PRI if self.ranks.rank == 0 else values_PRI.zero_()
