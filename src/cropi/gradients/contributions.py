"""What one use of a parameter adds to every prompt's gradient, kept as factors until it is needed.

A parameter is seen as a matrix of rows (`matrix_shape`). A contribution makes some rows of the
gradients of all prompts at once, or, for sketches that are themselves products, a projection or a
block of them straight from the factors: then no dense gradient ever exists. Contributions add up,
so a parameter used twice (tied embeddings) is the sum of its uses.

Shape legend: T vectors of all prompts, one after the other; P prompts, R rows asked for, I width,
O all rows; A, B columns of left and right maps; C columns asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cropi.gradients.collation import Segments


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and width of a parameter: a vector is one row, further axes belong to the width."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


@dataclass
class Workspace:
    """Buffers that live on: fresh memory costs more than what is computed in it."""

    device: torch.device
    _buffers: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of `shape` that holds anything; the next one of its dtype overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return buffer[:size].view(shape)


class Contribution(Protocol):
    """One use of a parameter: the gradients it gives each prompt."""

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Add rows `rows` of each prompt's gradient to fp32 `tile_PRI`.

        `first` means that the tile holds nothing yet (not even zeros) and is overwritten.
        """

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """L^T G R of each prompt's gradient G [O, I] -> fp32 [P, A, B]."""

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """The block of rows and columns of each prompt's gradient -> fp32 [P, R, C]."""


def segment_products(left_TA: Tensor, right_TB: Tensor, segments: Segments) -> Tensor:
    """Sum of left_t right_t^T over each prompt's segment -> fp32 [P, A, B]."""
    stride = segments.stride
    if stride is not None:
        shape = (len(segments), stride, -1)
        return torch.bmm(left_TA.view(shape).transpose(1, 2), right_TB.view(shape)).float()
    found = torch.empty(len(segments), left_TA.shape[1], right_TB.shape[1], device=left_TA.device)
    for p, (start, stop) in enumerate(zip(segments.starts, segments.stops, strict=True)):
        found[p] = left_TA[start:stop].T @ right_TB[start:stop]
    return found


@dataclass(frozen=True)
class MatrixContribution:
    """sum_t left_t right_t^T for each prompt; `left_TO` and `right_TI` in the compute dtype."""

    left_TO: Tensor
    right_TI: Tensor
    segments: Segments

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """One batched matmul where all prompts have as many tokens, else one a prompt.

        A product may come out in bf16; the sum with other uses is fp32.
        """
        stride = self.segments.stride
        if stride is None:
            self._add_one_by_one(tile_PRI, rows, first, work)
            return
        shape = (len(self.segments), stride, -1)
        left = self.left_TO.view(shape)[:, :, rows].transpose(1, 2)
        right = self.right_TI.view(shape)
        if left.dtype == torch.float32:
            torch.baddbmm(tile_PRI, left, right, beta=0 if first else 1, out=tile_PRI)
        else:
            product = work.take(tuple(tile_PRI.shape), left.dtype)
            torch.bmm(left, right, out=product)
            tile_PRI.copy_(product) if first else tile_PRI.add_(product)

    def _add_one_by_one(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        wide = self.left_TO.dtype == torch.float32
        for p, (start, stop) in enumerate(
            zip(self.segments.starts, self.segments.stops, strict=True)
        ):
            left, right = self.left_TO[start:stop, rows].T, self.right_TI[start:stop]
            if wide:
                torch.addmm(tile_PRI[p], left, right, beta=0 if first else 1, out=tile_PRI[p])
            else:
                product = work.take(tuple(tile_PRI.shape[1:]), left.dtype)
                torch.mm(left, right, out=product)
                tile_PRI[p].copy_(product) if first else tile_PRI[p].add_(product)

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """Both factors are projected token by token, then multiplied."""
        dtype = self.left_TO.dtype
        left, right = self.left_TO @ left_OA.to(dtype), self.right_TI @ right_IB.to(dtype)
        return segment_products(left, right, self.segments)

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """Only the columns of the factors that the block needs are multiplied."""
        return segment_products(self.left_TO[:, rows_R], self.right_TI[:, columns_C], self.segments)


@dataclass(frozen=True)
class VectorContribution:
    """A small gradient that is simply there: fp32 [P, n], one row."""

    values_PN: Tensor

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Add the one row."""
        values = self.values_PN.unsqueeze(1)
        tile_PRI.copy_(values) if first else tile_PRI.add_(values)

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """G has one row, and so has L."""
        return (self.values_PN @ right_IB.float()).unsqueeze(1) * left_OA.float().view(1, -1, 1)

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """The chosen columns, once for every time the one row is asked for."""
        return self.values_PN[:, columns_C].unsqueeze(1).expand(-1, len(rows_R), -1)


@dataclass(frozen=True)
class RowsContribution:
    """Embedding: vector t of its prompt adds `values_TI` to row `ids_T` (int64)."""

    ids_T: Tensor
    values_TI: Tensor
    segments: Segments

    @cached_property
    def slot_T(self) -> Tensor:
        """The prompt of each vector."""
        lengths = [b - a for a, b in zip(self.segments.starts, self.segments.stops, strict=True)]
        slots = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return slots.to(self.ids_T.device)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Ids in order, and the vectors they belong to: a tile's are neighbours."""
        return self.ids_T.sort()

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Scatter the vectors whose rows are in the tile."""
        if first:
            tile_PRI.zero_()
        ids, order = self._sorted
        edges = torch.tensor([rows.start, rows.stop], device=ids.device)
        start, stop = torch.searchsorted(ids, edges).tolist()
        if start == stop:
            return
        vectors = order[start:stop]
        place = self.slot_T[vectors] * tile_PRI.shape[1] + ids[start:stop] - rows.start
        flat = tile_PRI.view(-1, tile_PRI.shape[2])
        flat.index_add_(0, place, self.values_TI[vectors].to(flat.dtype))

    def within(self, rows: Tensor) -> RowsContribution:
        """The same vectors, their rows numbered by place in sorted `rows`, which has them all."""
        places = torch.searchsorted(rows, self.ids_T)
        return RowsContribution(places, self.values_TI, self.segments)

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """A one-hot vector times L is a row of L."""
        dtype = self.values_TI.dtype
        left = left_OA[self.ids_T].to(dtype)
        return segment_products(left, self.values_TI @ right_IB.to(dtype), self.segments)

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """The vectors whose rows were asked for, `rows_R` in any order but each once."""
        order = rows_R.argsort()
        place = torch.searchsorted(rows_R[order], self.ids_T).clamp_(max=len(rows_R) - 1)
        row_T = order[place]
        hit = (rows_R[row_T] == self.ids_T).nonzero().squeeze(1)
        prompts = len(self.segments)
        found = torch.zeros(prompts * len(rows_R), len(columns_C), device=self.ids_T.device)
        flat = self.slot_T[hit] * len(rows_R) + row_T[hit]
        found.index_add_(0, flat, self.values_TI[hit][:, columns_C].float())
        return found.view(prompts, len(rows_R), len(columns_C))


def touched_rows(contributions: Sequence[Contribution]) -> Tensor | None:
    """Sorted rows that can be non-zero where only a look-up uses the parameter, else None."""
    ids = [c.ids_T for c in contributions if isinstance(c, RowsContribution)]
    return torch.unique(torch.cat(ids)) if len(ids) == len(contributions) else None
