"""Attention over rows that hold a prompt once, followed by all of its responses.

Treated as one sequence under a block mask, most pairs of positions in such a row are masked but
computed all the same. Here each prompt attends to itself, and each response to its prompt's keys
and values and to its own: the same numbers, and for 8 responses of 64 tokens after a prompt of 60 a
seventh of the pairs.

It replaces the model's scaled dot-product attention through transformers' registry of attention
functions while a batch is processed. On a CPU, small blocks are computed with explicit matmuls,
which are three times faster there than torch's fused kernel (docs/design/gradients.md).

Shape legend: N rows, L positions per row, T = N*L flat positions; P prompt positions (padded),
D responses, R response positions (padded), S = P + R keys; H heads, G query heads per key head,
E head width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cropi.gradients import Unsupported

EXPLICIT_SCORES = 1 << 25
"""Scores per call up to which a CPU computes them explicitly: 128 MB in fp32."""

SHORT = 15
"""Response positions up to which padding costs less than another call."""

UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias")
"""Options of transformers' attention functions that change what is computed."""

_instances = itertools.count()


def text_config(model: nn.Module) -> Any:
    """The config of the language model, also within a multimodal one; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def attention_window(model: nn.Module) -> float:
    """The shortest attention window of any layer; infinity where every layer sees everything."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    sizes = [getattr(text_config(model), name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=math.inf)


def supports_block_masks(model: nn.Module) -> bool:
    """Whether the attention in use reads a [N, 1, L, L] mask; flash attention does not."""
    implementation = getattr(text_config(model), "_attn_implementation", None)
    return implementation in (None, "sdpa", "eager")


def supports_prefix_attention(model: nn.Module) -> bool:
    """Whether the model uses torch's scaled dot-product attention, which this can replace."""
    return getattr(text_config(model), "_attn_implementation", None) == "sdpa"


@dataclass(frozen=True)
class ResponseBlock:
    """Responses of similar length: at most twice as long as each other.

    `responses_DR` int64 flat positions, padded; `keys_DS` the positions each attends to: its
    prompt, then itself; `real_DS` bool, which of those are not padding.
    """

    responses_DR: Tensor
    keys_DS: Tensor
    real_DS: Tensor

    @property
    def visible(self) -> Tensor:
        """Which keys each position may attend to -> bool [D, 1, R, S].

        Its prompt, and its response up to itself; padded positions see the prompt too, so that
        no row of the mask is empty.
        """
        length = self.responses_DR.shape[1]
        prefix = self.real_DS.shape[1] - length
        earlier = torch.ones(length, length + prefix, dtype=torch.bool, device=self.real_DS.device)
        return self.real_DS[:, None, None, :] & earlier.tril_(prefix)


@dataclass(frozen=True)
class PrefixLayout:
    """Where prompts and responses lie among the flat positions of a batch.

    `prompts_NP` int64 flat positions of each row's prompt, padded; `blocks` the responses that have
    positions of their own; `source_T` the index of each position's result among the prompts'
    [N*P], then each block's [D*R]; `positions` = L.
    """

    prompts_NP: Tensor
    blocks: list[ResponseBlock]
    source_T: Tensor
    positions: int


def prefix_layout(
    prompt_lengths: Sequence[int],
    responses: Sequence[Sequence[np.ndarray]],
    length: int,
    device: torch.device,
) -> PrefixLayout:
    """Lay out rows of `length` positions; `responses[n]` are the response positions in row n.

    Padding attends to the first position of all.
    """
    prompts = [np.arange(size) + n * length for n, size in enumerate(prompt_lengths)]
    prompts_NP = pad_rows(prompts, -1)
    blocks, results = [], [prompts_NP.ravel()]
    for members in _by_length(responses):
        responses_DR = pad_rows([positions + n * length for n, positions in members], -1)
        keys_DS = np.concatenate([prompts_NP[[n for n, _ in members]], responses_DR], 1)
        arrays = (np.maximum(responses_DR, 0), np.maximum(keys_DS, 0), keys_DS >= 0)
        blocks.append(ResponseBlock(*(torch.from_numpy(a).to(device) for a in arrays)))
        results.append(responses_DR.ravel())
    order = np.concatenate(results)
    source_T = np.zeros(len(prompt_lengths) * length, dtype=np.int64)
    source_T[order[order >= 0]] = np.flatnonzero(order >= 0)
    clamped = torch.from_numpy(np.maximum(prompts_NP, 0)).to(device)
    return PrefixLayout(clamped, blocks, torch.from_numpy(source_T).to(device), length)


def pad_rows(rows: Sequence[np.ndarray], value: int, length: int | None = None) -> np.ndarray:
    """Stack integer rows as int64, padded on the right."""
    out = np.full((len(rows), length or max(map(len, rows))), value, dtype=np.int64)
    for n, row in enumerate(rows):
        out[n, : len(row)] = row
    return out


def _by_length(responses: Sequence[Sequence[np.ndarray]]) -> list[list[tuple[int, np.ndarray]]]:
    """(row, positions) of the responses that have positions, by doubling length.

    One runaway response would otherwise pad all others to its length.
    """
    blocks: dict[int, list[tuple[int, np.ndarray]]] = {}
    for n, row in enumerate(responses):
        for positions in row:
            if len(positions):
                doublings = max(SHORT, len(positions)).bit_length()
                blocks.setdefault(doublings, []).append((n, positions))
    return [blocks[doublings] for doublings in sorted(blocks)]


@dataclass(frozen=True)
class Masks:
    """Additive masks of a layout in the compute dtype: prompts [1, 1, P, P], each block's."""

    prompts: Tensor
    blocks: list[Tensor]

    @classmethod
    def of(cls, layout: PrefixLayout, dtype: torch.dtype) -> Masks:
        """Zeros where a position may attend, the dtype's lowest number elsewhere."""
        length = layout.prompts_NP.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=layout.prompts_NP.device)
        blocks = [additive_mask(block.visible, dtype) for block in layout.blocks]
        return cls(additive_mask(causal.tril_()[None, None], dtype), blocks)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros where `visible`, the dtype's lowest number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


class PrefixAttention:
    """An attention function for transformers' registry, used for one batch at a time."""

    def __init__(self) -> None:
        self.name = f"cropi_prefix_{next(_instances)}"
        self._layout: PrefixLayout | None = None
        self._masks: Masks | None = None

    @contextmanager
    def installed(self, model: nn.Module, layout: PrefixLayout | None) -> Iterator[None]:
        """Replace the model's attention for one batch, backward included; None: leave it."""
        if layout is None:
            yield
            return
        config = text_config(model)
        before = config._attn_implementation
        self._layout, self._masks = layout, None
        ALL_ATTENTION_FUNCTIONS[self.name] = self
        config._attn_implementation = self.name
        try:
            yield
        finally:
            config._attn_implementation = before
            del ALL_ATTENTION_FUNCTIONS[self.name]
            self._layout = self._masks = None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend [N, H, L, E] queries to [N, H / G, L, E] keys -> [N, L, H, E].

        Raises Unsupported for softcapping, attention sinks, position biases and other rows.
        """
        layout = self._layout
        assert layout is not None, "attention without a batch"
        if present := [k for k in UNSUPPORTED_OPTIONS if options.get(k) is not None]:
            raise Unsupported(f"attention with {', '.join(present)}")
        if attention_mask is not None or query.shape[2] != layout.positions:
            raise Unsupported("attention over something other than the batch's rows")
        if self._masks is None or self._masks.prompts.dtype != query.dtype:
            self._masks = Masks.of(layout, query.dtype)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        flat = [_by_position(x) for x in (query, key, value)]
        results = [_attend(flat, layout.prompts_NP, layout.prompts_NP, self._masks.prompts, scale)]
        for block, mask in zip(layout.blocks, self._masks.blocks, strict=True):
            results.append(_attend(flat, block.responses_DR, block.keys_DS, mask, scale))
        together = embedding(layout.source_T, torch.cat(results))
        rows, heads = query.shape[:2]
        return together.view(rows, layout.positions, heads, -1), None


def _by_position(values_NHLE: Tensor) -> Tensor:
    """[N, H, L, E] -> [T, H, E], a view where heads were the inner axis before."""
    return values_NHLE.transpose(1, 2).flatten(0, 1)


def _attend(
    flat: list[Tensor], query_XQ: Tensor, key_XS: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Attention of chosen positions to chosen positions -> [X * Q, H * E]."""
    query = _gather(flat[0], query_XQ)
    key, value = (_gather(x, key_XS) for x in flat[1:])
    scores = query.shape[:3].numel() * key.shape[2]
    if query.device.type == "cpu" and scores <= EXPLICIT_SCORES:
        attended = _explicit(query, key, value, mask, scale)
    else:
        # With a mask, grouped queries use the slowest kernel; repeated heads do not.
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _gather(flat_THE: Tensor, index_XQ: Tensor) -> Tensor:
    """Vectors at chosen positions -> [X, H, Q, E].

    An embedding look-up has a fast backward that sums what was read several times.
    """
    vectors = embedding(index_XQ, flat_THE.flatten(1))
    return vectors.view(*index_XQ.shape, *flat_THE.shape[1:]).transpose(1, 2)


def _explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(q k^T) v with the query heads of one key head side by side, softmax in fp32."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    split = (batch, groups, heads // groups, length)
    packed = query.reshape(batch, groups, -1, width)
    scores = (packed @ key.transpose(2, 3)).view(*split, -1)
    scores = torch.add(mask.unsqueeze(1), scores, alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.float32)
    attended: Tensor = weights.to(value.dtype).flatten(2, 3) @ value
    return attended.view(batch, heads, length, -1)
