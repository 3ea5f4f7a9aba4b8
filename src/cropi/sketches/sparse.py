"""The paper's sketch: a uniformly random mask over all coordinates, then a projection.

Every coordinate has a place in the concatenation of all parameters (names sorted). A 64-bit mix
of (seed, place) decides whether it is kept, which of the `dim` buckets it adds to, and its sign:
signed hashing, the sparse Johnson-Lindenstrauss map with one entry per column. Kept coordinates
are scaled by 1/sqrt(ratio), so inner products are unbiased. The dense projections, `rademacher`
and `gaussian`, are there for comparison: `dim` random numbers for every kept coordinate, made from
(place, dimension) a few coordinates at a time, at `dim` times the work of hashing.

Departures from the paper's released projection: the mask is uniform over *all* coordinates, and
places are 64-bit, so models of more than 2^32 coordinates do not wrap around. The identity names
the parameters as well as the seed; nothing is stored except a cache that fits in memory.

Shape legend: P prompts, R rows, I width, W = D buckets, C coordinates, K kept coordinates.
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
from cropi.sketches.counter_rng import (
    WORD,
    CoordinateIndex,
    below,
    gaussians,
    keys,
    mix64,
    parameters_identity,
    shift_right,
    signs,
)
from cropi.sketches.sketch import PlainSketch, Shapes, Sketch

BLOCK = 1 << 16
"""Coordinates hashed at once: their intermediate values should stay in a CPU's cache."""

CACHE_BYTES = 1 << 28
"""Memory for blocks hashed earlier; a model of 20M kept coordinates fits."""


DENSE = ("rademacher", "gaussian")
"""Projections with `dim` random numbers for every coordinate."""

DENSE_ENTRIES = 1 << 20
"""Entries of a dense projection that exist at once."""


def hash_keys(seed: int) -> tuple[int, int]:
    """Two int64 keys for one seed, one for the mask and one for bucket and sign."""
    first, second = keys("sparse", seed, 2)
    return first, second


@dataclass(frozen=True)
class Block:
    """Some coordinates: which are kept, and the columns of the projection that belong to them.

    `positions` int64 [K] within the block, None where all are kept; `columns` (bucket int64 [K],
    scaled sign fp32 [K]) for hashing, else (place int64 [K],).
    """

    positions: Tensor | None
    columns: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the block takes."""
        tensors = self.columns if self.positions is None else (self.positions, *self.columns)
        return sum(t.numel() * t.element_size() for t in tensors)

    def cut(self, start: int, stop: int, size: int) -> Block:
        """The coordinates [start, stop) of the block's `size`, counted from start."""
        if (start, stop) == (0, size):
            return self
        if self.positions is None:
            return Block(None, tuple(t[start:stop] for t in self.columns))
        edges = torch.tensor([start, stop], device=self.positions.device)
        first, last = torch.searchsorted(self.positions, edges).tolist()
        positions = self.positions[first:last] - start
        return Block(positions, tuple(t[first:last] for t in self.columns))


@dataclass
class SparseSketch(PlainSketch):
    """Mask with `ratio`, then a projection to `dim` dimensions.

    `shapes` are the parameters' shapes by name. Raises InputError for an unknown projection or a
    ratio that is not within (0, 1].
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    ratio: float
    dim: int
    projection: str = "hash"
    _index: CoordinateIndex = field(init=False, repr=False)
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
        self._index = CoordinateIndex(self.shapes, lambda width: width)

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
            positions = block.positions
            self._add(values if positions is None else values[:, positions], block, out_PW)

    def coordinates(self, places_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept mask (bool), bucket (int64) and scaled sign (fp32) of int64 places."""
        return self._is_kept(places_C), *self._bucket_and_sign(places_C)

    def _add(self, values_PK: Tensor, block: Block, out_PW: Tensor) -> None:
        if self.projection == "hash":
            bucket_K, sign_K = block.columns
            # With an index expanded from one row torch scatters row by row, three times faster
            # than `index_add_` with the one-dimensional index.
            out_PW.scatter_add_(1, bucket_K.expand(len(values_PK), -1), values_PK * sign_K)
        else:
            scaled = values_PK / math.sqrt(self.ratio)
            add_dense(scaled, block.columns[0], self.projection, self.seed, out_PW)

    def _add_on_gpu(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """One kernel that hashes in registers; the same tiles give the same bits."""
        from cropi.sketches.triton_hash import add_hashed

        offset, keys_ = self._index.offsets[name], hash_keys(self.seed)
        with torch.cuda.device(gradient_PRI.device):
            add_hashed(gradient_PRI, rows, offset, keys_, self.ratio, out_PW, reproducible=True)

    def _listed(
        self, name: str, rows_R: Tensor, device: torch.device
    ) -> Iterator[tuple[slice, Block]]:
        """Blocks of listed rows: (where they are in the list, block)."""
        step = self._step(name)
        for first in range(0, len(rows_R), step):
            part = slice(first, first + step)
            yield part, self._hashed(self._index.places(name, rows_R[part].to(device)))

    def _ranged(
        self, name: str, rows: slice, device: torch.device
    ) -> Iterator[tuple[slice, Block]]:
        """Blocks of a range of rows; they start at the same rows for every range."""
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
        return max(1, BLOCK // max(1, self._index.per_row[name]))

    def _block(self, name: str, first: int, last: int, device: torch.device) -> Block:
        """The block of rows [first, last), cached while there is memory for it."""
        if (name, first, device) in self._cache:
            return self._cache[name, first, device]
        numbers = torch.arange(first, last, dtype=torch.int64, device=device)
        block = self._hashed(self._index.places(name, numbers))
        if self._cached_bytes + block.nbytes <= CACHE_BYTES:
            self._cache[name, first, device] = block
            self._cached_bytes += block.nbytes
        return block

    def _hashed(self, places_RI: Tensor) -> Block:
        places = places_RI.flatten()
        positions = None if self.ratio == 1 else self._is_kept(places).nonzero().squeeze(1)
        kept_places = places if positions is None else places[positions]
        hashed = self.projection == "hash"
        return Block(positions, self._bucket_and_sign(kept_places) if hashed else (kept_places,))

    def _is_kept(self, places_C: Tensor) -> Tensor:
        first, _ = hash_keys(self.seed)
        return shift_right(mix64(places_C, first), 11) < int(self.ratio * (1 << 53))

    def _bucket_and_sign(self, places_C: Tensor) -> tuple[Tensor, Tensor]:
        _, second = hash_keys(self.seed)
        mixed = mix64(places_C, second)
        sign = (mixed & 1).to(torch.float32).mul_(2).sub_(1)
        return below(mixed, self.dim), sign.div_(math.sqrt(self.ratio))


def add_dense(
    values_PK: Tensor, places_K: Tensor, projection: str, seed: int, out_PD: Tensor
) -> None:
    """Add the projection of coordinates at int64 places to fp32 `out_PD`."""
    dim = out_PD.shape[1]
    entries = rademacher_entries if projection == "rademacher" else gaussian_entries
    step = max(1, DENSE_ENTRIES // dim)
    for first in range(0, len(places_K), step):
        part = slice(first, first + step)
        matrix_KD = entries(places_K[part], dim, seed)
        out_PD.addmm_(values_PK[:, part], matrix_KD, alpha=1 / math.sqrt(dim))


def rademacher_entries(places_K: Tensor, dim: int, seed: int) -> Tensor:
    """Independent signs fp32 [K, D]."""
    words = -(-dim // WORD)
    (key,) = keys("dense.rademacher", seed, 1)
    return signs(mix64(_counters(places_K, words), key)).view(len(places_K), -1)[:, :dim]


def gaussian_entries(places_K: Tensor, dim: int, seed: int) -> Tensor:
    """Independent standard normals fp32 [K, D]."""
    (key,) = keys("dense.gaussian", seed, 1)
    return gaussians(_counters(places_K, dim), key).view(len(places_K), dim)


def _counters(places_K: Tensor, each: int) -> Tensor:
    """`each` distinct numbers for every place, flat int64."""
    within = torch.arange(each, dtype=torch.int64, device=places_K.device)
    return ((places_K * each).unsqueeze(1) + within).flatten()


@functools.cache
def triton_installed() -> bool:
    """Whether the kernel is available; Triton comes with torch's CUDA builds on Linux."""
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
        "hash", description="projection of the coordinates that the mask keeps"
    )


@plugin("sketch", "sparse", SparseSettings)
def sparse(settings: SparseSettings, shapes: Shapes, seed: int) -> Sketch:
    """The paper's mask, then a projection."""
    return SparseSketch(shapes, seed, settings.ratio, settings.dim, settings.projection)
