"""What one use of a parameter adds to every prompt's gradient, stored as factors until needed.

A parameter is treated as a matrix of rows (`matrix_shape`). A contribution makes some rows of all
prompts' gradients at once, or, for sketches that are themselves products, a projection or a block
of them directly from the factors, without ever forming a dense gradient. Contributions add up, so
the gradient of a parameter that is used twice (tied embeddings) is the sum of its uses.

Shape legend: T vectors of all prompts, one prompt after the other; P prompts, R requested rows,
I width, O all rows; A, B columns of left and right maps; C requested columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SLAB_BYTES = 1 << 24
"""Bytes of half-precision products that are made at once and widened one tile at a time."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and width of a parameter: a vector is one row, further axes belong to the width."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Segments:
    """The range of each prompt's vectors in a flat list of vectors: [starts[p], stops[p]).

    Segments follow one another without gaps.
    """

    starts: list[int]
    stops: list[int]

    @classmethod
    def of(cls, owner: np.ndarray, owners: int) -> Segments:
        """The segments of a sorted list of owners."""
        edges = np.searchsorted(owner, np.arange(owners + 1))
        return cls(edges[:-1].tolist(), edges[1:].tolist())

    @property
    def stride(self) -> int | None:
        """Length of every segment where all are equal, else None."""
        lengths = {stop - start for start, stop in zip(self.starts, self.stops, strict=True)}
        return lengths.pop() if len(lengths) == 1 else None

    def __len__(self) -> int:
        return len(self.starts)


@dataclass
class Workspace:
    """Reusable buffers: allocating fresh memory costs more than what is computed in it."""

    device: torch.device
    _buffers: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of `shape`, overwritten by the next one of the same dtype."""
        size = math.prod(shape)
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return buffer[:size].view(shape)


class Contribution(Protocol):
    """One use of a parameter: the gradient that it gives each prompt."""

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Add rows `rows` of each prompt's gradient to fp32 `tile_PRI`.

        `first` means that the tile is uninitialised and is overwritten. `work` belongs to this
        contribution alone until all of its rows have been added.
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
    products_PAB = torch.empty(
        len(segments), left_TA.shape[1], right_TB.shape[1], device=left_TA.device
    )
    for p, (start, stop) in enumerate(zip(segments.starts, segments.stops, strict=True)):
        products_PAB[p] = left_TA[start:stop].T @ right_TB[start:stop]
    return products_PAB


@dataclass
class MatrixContribution:
    """sum_t left_t right_t^T for each prompt; `left_TO` and `right_TI` in the compute dtype."""

    left_TO: Tensor
    right_TI: Tensor
    segments: Segments
    _slab: tuple[int, int, Tensor] | None = field(init=False, repr=False, default=None)

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Fp32 products are accumulated in the tile itself; bf16 ones are made, then added."""
        if self.left_TO.dtype == torch.float32:
            self._multiply(tile_PRI, rows, beta=0 if first else 1)
            return
        product = self._product(rows, tile_PRI.shape, work)
        tile_PRI.copy_(product) if first else tile_PRI.add_(product)

    def _product(self, rows: slice, shape: torch.Size, work: Workspace) -> Tensor:
        """Rows of the products [P, R, I], from a slab of more rows than were requested.

        Each product first copies its rows of the left factor, so few large products are cheaper.
        """
        if self._slab is None or not self._slab[0] <= rows.start <= rows.stop <= self._slab[1]:
            dtype = self.left_TO.dtype
            prompts, least, width = shape
            height = max(least, SLAB_BYTES // (prompts * width * dtype.itemsize))
            stop = min(rows.start + height, self.left_TO.shape[1])
            slab = work.take((prompts, stop - rows.start, width), dtype)
            self._multiply(slab, slice(rows.start, stop), beta=0)
            self._slab = rows.start, stop, slab
        start, _, slab = self._slab
        return slab[:, rows.start - start : rows.stop - start]

    def _multiply(self, out_PRI: Tensor, rows: slice, beta: int) -> None:
        """One batched matmul where all prompts have equally many tokens, else one per prompt."""
        stride = self.segments.stride
        if stride is not None:
            shape = (len(self.segments), stride, -1)
            left = self._contiguous(self.left_TO.view(shape)[:, :, rows]).transpose(1, 2)
            torch.baddbmm(out_PRI, left, self.right_TI.view(shape), beta=beta, out=out_PRI)
            return
        edges = zip(self.segments.starts, self.segments.stops, strict=True)
        for out, (start, stop) in zip(out_PRI, edges, strict=True):
            left = self._contiguous(self.left_TO[start:stop, rows]).T
            torch.addmm(out, left, self.right_TI[start:stop], beta=beta, out=out)

    def _contiguous(self, left: Tensor) -> Tensor:
        """A part of the left factor in the memory layout that half-precision matmuls need.

        They would otherwise make a transposed copy, which costs three times a contiguous one.
        """
        return left if left.dtype == torch.float32 else left.contiguous()

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """Both factors are projected token by token, then multiplied."""
        dtype = self.left_TO.dtype
        left, right = self.left_TO @ left_OA.to(dtype), self.right_TI @ right_IB.to(dtype)
        return segment_products(left, right, self.segments)

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """Only the columns of the factors that the block needs are multiplied."""
        return segment_products(self.left_TO[:, rows_R], self.right_TI[:, columns_C], self.segments)


@dataclass(frozen=True)
class DenseContribution:
    """A gradient that is given explicitly: fp32 [P, O, I]."""

    values_POI: Tensor

    @classmethod
    def of_vectors(cls, values_PN: Tensor) -> DenseContribution:
        """That of a parameter with one row."""
        return cls(values_PN.unsqueeze(1))

    def add_rows(self, tile_PRI: Tensor, rows: slice, first: bool, work: Workspace) -> None:
        """Add the rows as they are."""
        values = self.values_POI[:, rows]
        tile_PRI.copy_(values) if first else tile_PRI.add_(values)

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """Two plain products."""
        return left_OA.float().T @ (self.values_POI @ right_IB.float())

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """The chosen rows and columns, repeated where they were requested more than once."""
        return self.values_POI[:, rows_R][:, :, columns_C]


@dataclass(frozen=True)
class RowsContribution:
    """Embedding look-up: vector t of its prompt adds `values_TI` to row `ids_T` (int64)."""

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
        """Sorted ids and the vectors they belong to, so that a tile's vectors are contiguous."""
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
        flat_index = self.slot_T[vectors] * tile_PRI.shape[1] + ids[start:stop] - rows.start
        flat = tile_PRI.view(-1, tile_PRI.shape[2])
        flat.index_add_(0, flat_index, self.values_TI[vectors].to(flat.dtype))

    def within(self, rows: Tensor) -> RowsContribution:
        """The same vectors with rows renumbered by their position in sorted, complete `rows`."""
        indices = torch.searchsorted(rows, self.ids_T)
        return RowsContribution(indices, self.values_TI, self.segments)

    def project(self, left_OA: Tensor, right_IB: Tensor) -> Tensor:
        """A one-hot vector times L is a row of L."""
        dtype = self.values_TI.dtype
        left = left_OA[self.ids_T].to(dtype)
        return segment_products(left, self.values_TI @ right_IB.to(dtype), self.segments)

    def select(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """The vectors whose rows were requested; `rows_R` in any order, without duplicates."""
        order = rows_R.argsort()
        flat_index = torch.searchsorted(rows_R[order], self.ids_T).clamp_(max=len(rows_R) - 1)
        row_T = order[flat_index]
        hit = (rows_R[row_T] == self.ids_T).nonzero().squeeze(1)
        prompts = len(self.segments)
        block = torch.zeros(prompts * len(rows_R), len(columns_C), device=self.ids_T.device)
        flat = self.slot_T[hit] * len(rows_R) + row_T[hit]
        block.index_add_(0, flat, self.values_TI[hit][:, columns_C].float())
        return block.view(prompts, len(rows_R), len(columns_C))


def touched_rows(contributions: Sequence[Contribution]) -> Tensor | None:
    """Sorted rows that can be non-zero where only look-ups use the parameter, else None."""
    ids = [c.ids_T for c in contributions if isinstance(c, RowsContribution)]
    return torch.unique(torch.cat(ids)) if len(ids) == len(contributions) else None
