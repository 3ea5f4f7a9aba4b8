"""Which prompts go through the model together, and how.

There are up to three modes, found by trial: shared prefixes under our own attention, shared
prefixes under a block mask with the model's attention, and one row per response. A prompt takes the
best mode that its lengths allow; prefix sharing does not support sliding windows, so every response
(or the whole shared row) must fit in one. A group that exceeds the limits of a batch goes through
in parts, some of its responses at a time (`long_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from cropi.errors import InputError
from cropi.gradients import Unsupported
from cropi.gradients.attention import (
    PrefixAttention,
    attention_window,
    supports_block_masks,
    supports_prefix_attention,
    text_config,
)
from cropi.gradients.collation import PreparedGroup, PromptBatch, collate, shortened_group
from cropi.gradients.ranks import ALONE, Ranks, rounds
from cropi.text import plural

BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default padded tokens per batch, by device: a CPU gains nothing from more."""

LOGITS_BYTES = {"cpu": 1 << 29, "cuda": 1 << 33}
"""Most bytes that a batch's logits would take in fp32; they exist once, in the model's dtype."""


@dataclass(frozen=True, order=True)
class ForwardMode:
    """How rows are made: prefixes shared or not, under our prefix attention or the model's."""

    share_prefix: bool
    prefix_attention: bool


ROWS = ForwardMode(share_prefix=False, prefix_attention=False)
"""One row per response under the model's own attention: what every causal model supports."""


@dataclass(frozen=True)
class RankBatch:
    """The batch of one rank, computed while the other ranks compute theirs.

    `prompts` counts the prompts that all ranks finish with it. An `idle` rank, for which no batch
    is left, repeats another's with weights of zero, because weights and directions are gathered by
    all together.
    """

    members: list[PreparedGroup]
    mode: ForwardMode
    prompts: int
    idle: bool = False


@dataclass(frozen=True)
class LongGroup:
    """A prompt whose responses do not go through the model together, but some at a time."""

    group: PreparedGroup
    parts: list[PreparedGroup]
    mode: ForwardMode

    @property
    def tokens(self) -> int:
        """Positions of all parts, each with the prompt."""
        if self.mode.share_prefix:
            return sum(part.shared_length for part in self.parts)
        return sum(self.group.row_lengths)


@dataclass(frozen=True)
class BatchSize:
    """Size of a batch: its longest row, rows, prompts, and a prompt's most predictions."""

    length: int = 0
    rows: int = 0
    prompts: int = 0
    predictions: int = 0

    def __add__(self, other: BatchSize) -> BatchSize:
        return BatchSize(
            max(self.length, other.length),
            self.rows + other.rows,
            self.prompts + other.prompts,
            max(self.predictions, other.predictions),
        )


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold: padded positions through the model, and padded logit rows.

    Logits are one vocabulary wide, so a large vocabulary fills memory long before positions do.
    """

    positions: int
    predictions: int

    def allow(self, size: BatchSize) -> bool:
        """Whether a batch of this size is within the limits."""
        return (
            size.length * size.rows <= self.positions
            and size.predictions * size.prompts <= self.predictions
        )


def size_of(group: PreparedGroup, share_prefix: bool) -> BatchSize:
    """The size of one prompt. Responses that share the prompt share its last position's logits."""
    tokens = sum(int(mask.sum()) for mask in group.unique_masks)
    count = len(group.unique_ids)
    if share_prefix:
        first_tokens = sum(int(mask[0]) for mask in group.unique_masks)
        predictions = tokens - max(0, first_tokens - 1)
        return BatchSize(group.shared_length, 1, 1, predictions)
    return BatchSize(max(group.row_lengths), count, 1, tokens)


def plan_batches(
    groups: Sequence[PreparedGroup], limits: BatchLimits, share_prefix: bool
) -> list[list[PreparedGroup]]:
    """Split prompts into batches of similar row lengths within the limits.

    Longest first, so that limits that do not fit in memory fail at once and not after hours.
    """
    sizes = {g.index: size_of(g, share_prefix) for g in groups}
    ordered = sorted(
        groups, key=lambda g: (sizes[g.index].length, sizes[g.index].rows, g.index), reverse=True
    )
    batches: list[list[PreparedGroup]] = []
    total = BatchSize()
    for group in ordered:
        enlarged = total + sizes[group.index]
        if not batches or not limits.allow(enlarged):
            batches.append([])
            enlarged = sizes[group.index]
        batches[-1].append(group)
        total = enlarged
    return batches


def group_parts(
    group: PreparedGroup, limits: BatchLimits, share_prefix: bool
) -> list[PreparedGroup]:
    """The group, or, where it exceeds the limits, as many responses at a time as do not.

    At least one, however long it is. Parts repeat a prompt that responses share, and so responses
    may always take as many positions as the prompt.
    """
    if share_prefix:
        limits = replace(limits, positions=max(limits.positions, 2 * len(group.prompt_ids)))
    if limits.allow(size_of(group, share_prefix)):
        return [group]
    parts: list[PreparedGroup] = []
    for stop in range(1, len(group.unique_ids) + 1):
        enlarged = group.part(parts[-1].index if parts else 0, stop)
        if parts and limits.allow(size_of(enlarged, share_prefix)):
            parts[-1] = enlarged
        else:
            parts.append(group.part(stop - 1, stop))
    return parts if len(parts) > 1 else [group]


def batches_of_rank(
    batches: Sequence[tuple[list[PreparedGroup], ForwardMode]], ranks: Ranks
) -> Iterator[RankBatch]:
    """One rank's batches: every W-th of all."""
    for together in rounds(batches, ranks.size):
        members, mode = together[min(ranks.rank, len(together) - 1)]
        prompts = sum(len(each) for each, _ in together)
        yield RankBatch(members, mode, prompts, idle=ranks.rank >= len(together))


def device_of(model: nn.Module) -> torch.device:
    """The device that all of a model's weights are on.

    Raises InputError where `device_map` has put them on several, or has offloaded some.
    """
    devices = {parameter.device for parameter in model.parameters()}
    (device, *others) = sorted(devices, key=str)
    if others or device.type == "meta":
        names = ["no device (offloaded)" if d.type == "meta" else str(d) for d in devices]
        raise InputError(
            f"the model's weights are on {' and '.join(sorted(names))}, as device_map leaves them, "
            "and gradients need them on one device; load the model without device_map, or "
            "shard it over the processes of torchrun (docs/scaling.md)"
        )
    return device


class BatchPlanner:
    """Plans batches of prompts, and builds them for `model` one after the other.

    `best_mode` is the best mode that the model supports: ROWS until `choose_mode` was called.
    """

    def __init__(self, model: nn.Module, batch_tokens: int | None, share_prefix: bool) -> None:
        self.model = model
        self.share_prefix = share_prefix
        self.device = device_of(model)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, 16384)
        self.best_mode = ROWS
        self._attention = PrefixAttention()

    def choose_mode(self, require_agreement: Callable[[ForwardMode], None]) -> None:
        """Take the first mode, best first, that passes `require_agreement`.

        It raises Unsupported where a mode's results differ from those of one row per response.
        """
        candidates = []
        if supports_prefix_attention(self.model):
            candidates.append(ForwardMode(self.share_prefix, prefix_attention=True))
        if self.share_prefix and supports_block_masks(self.model):
            candidates.append(ForwardMode(share_prefix=True, prefix_attention=False))
        self.best_mode = ROWS
        for mode in candidates:
            with suppress(Unsupported):
                require_agreement(mode)
                self.best_mode = mode
                return

    def batches(
        self, prepared: Sequence[PreparedGroup], mode: ForwardMode | None = None
    ) -> Iterator[tuple[list[PreparedGroup], ForwardMode]]:
        """Yield prompts that go together, and their mode: the given one, or each one's best."""
        by_mode: dict[ForwardMode, list[PreparedGroup]] = {}
        for group in prepared:
            by_mode.setdefault(mode or self._mode(group), []).append(group)
        for mode in sorted(by_mode, reverse=True):
            for members in plan_batches(by_mode[mode], self._limits, mode.share_prefix):
                yield members, mode

    def separate(
        self, prepared: Sequence[PreparedGroup], mode: ForwardMode | None = None
    ) -> tuple[list[PreparedGroup], list[LongGroup]]:
        """The prompts whose groups fit into a batch, and the others in parts, longest first."""
        fitting, long = [], []
        for group in prepared:
            mode_of_group = mode or self._mode(group)
            parts = group_parts(group, self._limits, mode_of_group.share_prefix)
            if len(parts) == 1:
                fitting.append(group)
            else:
                long.append(LongGroup(group, parts, mode_of_group))
        return fitting, sorted(long, key=lambda each: -each.group.shared_length)

    def shortened(self, prepared: Sequence[PreparedGroup]) -> list[PreparedGroup]:
        """Groups that a path can be checked with: of each long one, what fits."""
        fitting, long = self.separate(prepared, ROWS)
        return [*fitting, *(shortened_group(each.group) for each in long)]

    def rank_batches(
        self,
        prepared: Sequence[PreparedGroup],
        ranks: Ranks = ALONE,
        mode: ForwardMode | None = None,
    ) -> Iterator[RankBatch]:
        """The batches of one rank. All of them plan the same ones and take every W-th."""
        return batches_of_rank(list(self.batches(prepared, mode)), ranks)

    @contextmanager
    def batch(
        self, members: Sequence[PreparedGroup], mode: ForwardMode, by_response: bool = False
    ) -> Iterator[PromptBatch]:
        """The batch of some prompts, with the mode's attention installed while it is in use.

        Raises InputError where it does not fit in the device's memory.
        """
        masked = not mode.prefix_attention
        batch = collate(members, mode.share_prefix, self.device, masked, by_response)
        layout = batch.layout if mode.prefix_attention else None
        try:
            with self._attention.installed(self.model, layout):
                yield batch
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(batch) from error

    def _mode(self, group: PreparedGroup) -> ForwardMode:
        window = attention_window(self.model)
        if self.best_mode.prefix_attention:
            return self.best_mode if max(group.row_lengths) <= window else ROWS
        fits = group.shared_length <= window
        return self.best_mode if fits and self._masking_is_cheaper(group) else ROWS

    def _masking_is_cheaper(self, group: PreparedGroup) -> bool:
        """Whether one long row under a block mask costs less than one row per response.

        Linear layers cost about 24 h^2 per position, dense attention 4 h per pair of positions.
        """
        width = getattr(text_config(self.model), "hidden_size", None) or 1024

        def cost(length: int) -> int:
            return length * (6 * width + length)

        return cost(group.shared_length) <= sum(map(cost, group.row_lengths))

    @property
    def _limits(self) -> BatchLimits:
        vocabulary = len(self.model.get_output_embeddings().weight)  # type: ignore[operator]
        predictions = LOGITS_BYTES.get(self.device.type, 1 << 29) // (4 * vocabulary)
        return BatchLimits(self.batch_tokens, max(1, predictions))

    def _out_of_memory(self, batch: PromptBatch) -> InputError:
        rows, length = batch.shape
        # Of one prompt, responses take at least as much as the prompt (`group_parts`).
        is_smallest = rows == 1 and length <= 2 * batch.layout.prompts_NP.shape[1]
        remedy = (
            f"lower batch_tokens (now {self.batch_tokens})"
            if batch.prompts > 1 or (len(batch.where_DT) > 1 and not is_smallest)
            else "use LoRA, a smaller dtype or shorter responses"
        )
        return InputError(
            f"{plural(batch.prompts, 'prompt')} in {plural(rows, 'row')} of {length} positions do "
            f"not fit in the device's memory; {remedy}, or turn on gradient_checkpointing"
        )
