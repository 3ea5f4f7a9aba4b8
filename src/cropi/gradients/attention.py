"""Attention over prompts that are computed once for all their responses.

A row holds a prompt and then its responses. Seen as one sequence under a block mask, most pairs
of positions are masked and computed all the same. Here each prompt attends to itself, and each
response to its prompt's keys and values and its own: the same numbers, and for 8 responses of 64
tokens after a prompt of 60 a seventh of the pairs.

It takes the place of the model's own scaled dot-product attention through transformers' registry
of attention functions, for as long as gradients are measured. On a CPU small blocks are computed
in plain matmuls, which are three times faster there than torch's fused kernel (docs/decisions.md).

Shape legend: N rows, L positions a row, T = N*L flat; P prompt positions (padded), D responses,
R response positions (padded), S = P + R keys; H heads, G query heads a key head, E head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cropi.gradients.collation import Batch, Layout
from cropi.gradients.forward import text_config
from cropi.gradients.layers import Unsupported

PLAIN_SCORES = 1 << 25
"""Scores of one call up to which a CPU computes them in the open: fp32 they fill 128 MB."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Masks:
    """Additive masks of a layout in the compute dtype: prompts [1, 1, P, P], each block's."""

    prompts: Tensor
    blocks: list[Tensor]

    @classmethod
    def of(cls, layout: Layout, dtype: torch.dtype) -> Masks:
        """Zeros where a position may look, the dtype's lowest number elsewhere."""
        length = layout.prompts_NP.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=layout.prompts_NP.device)
        blocks = [_additive(block.visible, dtype) for block in layout.blocks]
        return cls(_additive(causal.tril_()[None, None], dtype), blocks)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def takes_our_attention(model: nn.Module) -> bool:
    """Whether the model uses torch's scaled dot-product attention, which this can stand in for."""
    return getattr(text_config(model), "_attn_implementation", None) == "sdpa"


class PrefixAttention:
    """An attention function for transformers' registry; `batch` says what the rows hold."""

    def __init__(self) -> None:
        self.name = f"cropi_prefix_{next(_numbers)}"
        self._layout: Layout | None = None
        self._masks: Masks | None = None

    @contextmanager
    def installed(self, model: nn.Module, batch: Batch | None) -> Iterator[None]:
        """Stand in for the model's own attention on a batch, backward included; None: do not."""
        if batch is None:
            yield
            return
        config = text_config(model)
        before = config._attn_implementation
        self._layout, self._masks = batch.layout, None
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

        Raises Unsupported for what this does not know, such as softcapping or attention sinks.
        """
        layout = self._layout
        assert layout is not None, "attention without a batch"
        known = ("softcap", "s_aux", "position_bias")
        if unknown := [k for k in known if options.get(k) is not None]:
            raise Unsupported(f"attention with {', '.join(unknown)}")
        if attention_mask is not None or query.shape[2] != layout.positions:
            raise Unsupported("attention over something other than the batch's rows")
        if self._masks is None or self._masks.prompts.dtype != query.dtype:
            self._masks = Masks.of(layout, query.dtype)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        flat = [_by_position(x) for x in (query, key, value)]
        heads = query.shape[1]
        found = [_attend(flat, layout.prompts_NP, layout.prompts_NP, self._masks.prompts, scale)]
        for block, mask in zip(layout.blocks, self._masks.blocks, strict=True):
            found.append(_attend(flat, block.responses_DR, block.keys_DS, mask, scale))
        together = embedding(layout.source_T, torch.cat(found))
        rows = query.shape[0]
        return together.view(rows, layout.positions, heads, -1), None


def _by_position(values_NHLE: Tensor) -> Tensor:
    """[N, H, L, E] -> [T, H, E], a view where heads were the inner axis before."""
    return values_NHLE.transpose(1, 2).flatten(0, 1)


def _attend(
    flat: list[Tensor], query_XQ: Tensor, key_XS: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Attention of chosen positions to chosen positions -> [X * Q, H * E]."""
    query = _chosen(flat[0], query_XQ)
    key, value = (_chosen(x, key_XS) for x in flat[1:])
    scores = query.shape[:3].numel() * key.shape[2]
    if query.device.type == "cpu" and scores <= PLAIN_SCORES:
        found = _plain(query, key, value, mask, scale)
    else:
        # With a mask, grouped queries fall back to the slowest kernel; repeated heads do not.
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return found.transpose(1, 2).flatten(2).flatten(0, 1)


def _chosen(flat_THE: Tensor, places_XQ: Tensor) -> Tensor:
    """Vectors at chosen positions -> [X, H, Q, E].

    The look-up of an embedding has a fast backward, which adds up what was read many times.
    """
    found = embedding(places_XQ, flat_THE.flatten(1))
    return found.view(*places_XQ.shape, *flat_THE.shape[1:]).transpose(1, 2)


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(q k^T) v with the query heads of one key head side by side, softmax in fp32."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    split = (batch, groups, heads // groups, length)
    packed = query.reshape(batch, groups, -1, width)
    scores = (packed @ key.transpose(2, 3)).view(*split, -1)
    scores = torch.add(mask.unsqueeze(1), scores, alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.float32)
    found: Tensor = weights.to(value.dtype).flatten(2, 3) @ value
    return found.view(batch, heads, length, -1)
