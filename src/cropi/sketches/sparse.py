"""The paper's sketch: a uniformly random mask over all coordinates, then a projection.

Every coordinate has a place in the concatenation of all parameters (names sorted). A 64-bit mix
of (seed, place) decides whether it is kept, which of the `dim` buckets it adds to, and its sign:
signed hashing, the sparse Johnson-Lindenstrauss map with one entry a column. Kept coordinates
are scaled by 1/sqrt(ratio), so inner products are unbiased. The dense projections, `rademacher`
and `gaussian`, are there to compare with: `dim` random numbers for every kept coordinate.

Departures from the paper's released projection: the mask is uniform over *all* coordinates, and
places are 64-bit, so models of more than 2^32 coordinates do not wrap around. The identity names
the parameters as well as the seed; nothing is stored but a cache that fits in memory.

Shape legend: P prompts, R rows, I width, W = D buckets, C coordinates, K kept ones.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.contributions import matrix_shape
from cropi.plugins import plugin
from cropi.settings import Count, Fraction, Section
from cropi.sketches.counter_rng import Layout, below, keys, mix64, parameters_identity, shift_right
from cropi.sketches.dense import DENSE, add_dense
from cropi.sketches.sketch import PlainSketch, Shapes, Sketch

BLOCK = 1 << 16
"""Coordinates hashed at once: what is computed for them should stay in a CPU's cache."""

CACHE_BYTES = 1 << 28
"""Memory for blocks that were hashed before; a model of 20M kept coordinates fits."""


def hash_keys(seed: int) -> tuple[int, int]:
    """Two int64 keys for one seed, one for the mask and one for bucket and sign."""
    first, second = keys("sparse", seed, 2)
    return first, second


@dataclass(frozen=True)
class Block:
    """Some coordinates: positions kept, int64 [K] or None where all are, and what becomes of them.

    `fate` is (bucket int64 [K], scaled sign fp32 [K]) for hashing, else (place int64 [K],).
    """

    kept: Tensor | None
    fate: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        tensors = self.fate if self.kept is None else (self.kept, *self.fate)
        return sum(t.numel() * t.element_size() for t in tensors)

    def cut(self, start: int, stop: int, size: int) -> Block:
        """The coordinates [start, stop) of the block's `size`, counted from start."""
        if (start, stop) == (0, size):
            return self
        if self.kept is None:
            return Block(None, tuple(t[start:stop] for t in self.fate))
        edges = torch.tensor([start, stop], device=self.kept.device)
        first, last = torch.searchsorted(self.kept, edges).tolist()
        return Block(self.kept[first:last] - start, tuple(t[first:last] for t in self.fate))


@dataclass
class SparseSketch(PlainSketch):
    """Mask with `ratio`, then a projection to `dim` dimensions.

    `shapes` are the parameters' shapes by name. Raises InputError for an unknown projection or a
    ratio that is not within (0, 1].
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    ratio: float = 0.15
    dim: int = 8192
    projection: str = "hash"
    _layout: Layout = field(init=False, repr=False)
    _cache: dict[tuple[str, int, torch.device], Block] = field(
        init=False, repr=False, default_factory=dict
    )
    _cached_bytes: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        allowed = ("hash", *DENSE)
        if self.projection not in allowed:
            raise InputError(
                f"unknown projection {self.projection!r}; allowed: {', '.join(allowed)}"
            )
        check_ratio(self.ratio)
        self._layout = Layout(self.shapes, lambda width: width)

    @property
    def identity(self) -> dict[str, str]:
        """Seed, sizes and a hash over names and shapes."""
        return {
            "sketch": "sparse",
            "seed": str(self.seed),
            "ratio": repr(self.ratio),
            "projection": self.projection,
            "dim": str(self.dim),
            "parameters": parameters_identity(self.shapes),
        }

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the sketch of fp32 `gradient_PRI`, some rows of a parameter, to fp32 `out_PW`."""
        device = gradient_PRI.device
        if gradient_PRI.is_cuda and self.projection == "hash" and triton_installed():
            self._add_on_gpu(name, rows, gradient_PRI, out_PW)
            return
        if isinstance(rows, Tensor):
            blocks = self._listed(name, rows, device)
        else:
            blocks = self._ranged(name, rows, device)
        for part, block in blocks:
            values = gradient_PRI[:, part].flatten(1)
            self._add(values if block.kept is None else values[:, block.kept], block, out_PW)

    def coordinates(self, places_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept mask (bool), bucket (int64) and scaled sign (fp32) of int64 places."""
        return self._keep(places_C), *self._buckets(places_C)

    def _add(self, values_PK: Tensor, block: Block, out_PW: Tensor) -> None:
        if self.projection == "hash":
            bucket_K, sign_K = block.fate
            # With an index expanded from one row torch scatters row by row, three times faster
            # than `index_add_` with the index itself.
            out_PW.scatter_add_(1, bucket_K.expand(len(values_PK), -1), values_PK * sign_K)
        else:
            scaled = values_PK / math.sqrt(self.ratio)
            add_dense(scaled, block.fate[0], self.projection, self.seed, out_PW)

    def _add_on_gpu(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """One kernel that hashes in registers; the same tiles give the same bits."""
        from cropi.sketches.triton_hash import add_hashed

        offset, keys_ = self._layout.offsets[name], hash_keys(self.seed)
        with torch.cuda.device(gradient_PRI.device):
            add_hashed(gradient_PRI, rows, offset, keys_, self.ratio, out_PW, reproducible=True)

    def _listed(
        self, name: str, rows_R: Tensor, device: torch.device
    ) -> Iterator[tuple[slice, Block]]:
        """Blocks of listed rows: (where they are in the list, block)."""
        step = self._step(name)
        for first in range(0, len(rows_R), step):
            part = slice(first, first + step)
            yield part, self._hashed(self._layout.places(name, rows_R[part].to(device)))

    def _ranged(
        self, name: str, rows: slice, device: torch.device
    ) -> Iterator[tuple[slice, Block]]:
        """Blocks of a range of rows; they start at the same rows whatever the range."""
        height, width = matrix_shape(self.shapes[name])
        step = self._step(name)
        for first in range(rows.start // step * step, rows.stop, step):
            last = min(first + step, height)
            start, stop = max(first, rows.start), min(last, rows.stop)
            block = self._block(name, first, last, device)
            edges = ((start - first) * width, (stop - first) * width)
            part = slice(start - rows.start, stop - rows.start)
            yield part, block.cut(*edges, (last - first) * width)

    def _step(self, name: str) -> int:
        return max(1, BLOCK // max(1, self._layout.per_row[name]))

    def _block(self, name: str, first: int, last: int, device: torch.device) -> Block:
        """The block of rows [first, last), kept while there is memory for it."""
        if (name, first, device) in self._cache:
            return self._cache[name, first, device]
        numbers = torch.arange(first, last, dtype=torch.int64, device=device)
        block = self._hashed(self._layout.places(name, numbers))
        if self._cached_bytes + block.nbytes <= CACHE_BYTES:
            self._cache[name, first, device] = block
            self._cached_bytes += block.nbytes
        return block

    def _hashed(self, places_RI: Tensor) -> Block:
        places = places_RI.flatten()
        kept = None if self.ratio == 1 else self._keep(places).nonzero().squeeze(1)
        chosen = places if kept is None else places[kept]
        return Block(kept, self._buckets(chosen) if self.projection == "hash" else (chosen,))

    def _keep(self, places_C: Tensor) -> Tensor:
        first, _ = hash_keys(self.seed)
        return shift_right(mix64(places_C, first), 11) < int(self.ratio * (1 << 53))

    def _buckets(self, places_C: Tensor) -> tuple[Tensor, Tensor]:
        _, second = hash_keys(self.seed)
        mixed = mix64(places_C, second)
        sign = (mixed & 1).to(torch.float32).mul_(2).sub_(1)
        return below(mixed, self.dim), sign.div_(math.sqrt(self.ratio))


@functools.cache
def triton_installed() -> bool:
    """Whether the kernel can be had; it comes with torch's CUDA builds on Linux."""
    return importlib.util.find_spec("triton") is not None


def check_ratio(ratio: float) -> None:
    """Raise InputError unless a share of coordinates is within (0, 1]."""
    if not 0 < ratio <= 1:
        raise InputError(
            f"a share of {ratio} of the coordinates cannot be kept; allowed: more than 0, at most 1"
        )


class SparseSettings(Section):
    """Settings of the sketch `sparse`."""

    ratio: Fraction = Field(0.15, description="share of coordinates kept")
    dim: Count = Field(8192, description="dimensions of the sketch")
    projection: Literal["hash", "rademacher", "gaussian"] = Field(
        "hash", description="what follows the mask"
    )


@plugin("sketch", "sparse", SparseSettings)
def sparse(settings: SparseSettings, shapes: Shapes, seed: int) -> Sketch:
    """The paper's mask, then a projection."""
    return SparseSketch(shapes, seed, settings.ratio, settings.dim, settings.projection)
