"""The paper's sketch: a uniformly random mask over all coordinates, then a projection.

Every coordinate has a place in the concatenation of all parameters (names sorted). A 64-bit mix
of (seed, place) decides whether it is kept, which of the `dim` buckets it adds to, and its sign:
signed hashing, the sparse Johnson-Lindenstrauss map with one entry a column. Kept coordinates
are scaled by 1/sqrt(ratio), so inner products are unbiased.

Departures from the paper's released projection: the mask is uniform over *all* coordinates, and
places are 64-bit, so models of more than 2^32 coordinates do not wrap around. The identity names
the parameters as well as the seed; nothing is stored but a cache that fits in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cropi.schema import fingerprint

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
BLOCK = 1 << 22
CACHE_BYTES = 1 << 28


def hash_keys(seed: int) -> tuple[int, int]:
    """Two int64 keys for one seed, one for the mask and one for bucket and sign.

    Nearby seeds must not give nearby keys: keys that differ by k give the same map, shifted by k
    coordinates.
    """
    digest = hashlib.sha256(f"cropi.sparse/{seed}".encode()).digest()
    first, second = (int.from_bytes(digest[n : n + 8], "little", signed=True) for n in (0, 8))
    return first, second


def mix64(places: Tensor, key: int) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood, 2014) of int64 places; wraps like unsigned arithmetic."""
    state = (places + key) * GOLDEN
    state = (state ^ _shift_right(state, 30)) * MIX_1
    state = (state ^ _shift_right(state, 27)) * MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's is arithmetic, so the copied sign bits are cleared."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


@dataclass
class SparseSketch:
    """Mask with `ratio`, then signed hashing to `dim` dimensions.

    `shapes` are the parameters' shapes by name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    ratio: float = 0.15
    dim: int = 8192
    _offsets: dict[str, int] = field(init=False)
    _cache: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = field(
        init=False, default_factory=dict
    )
    _cached_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._offsets, total = {}, 0
        for name in sorted(self.shapes):
            self._offsets[name] = total
            total += math.prod(self.shapes[name])

    @property
    def identity(self) -> dict[str, str]:
        """Seed, sizes and a hash over names and shapes."""
        return {
            "sketch": "sparse",
            "seed": str(self.seed),
            "ratio": repr(self.ratio),
            "dim": str(self.dim),
            "parameters": fingerprint(sorted((n, list(s)) for n, s in self.shapes.items())),
        }

    def project(self, name: str, gradient: Tensor, out_PD: Tensor) -> None:
        """Add the projection of fp32 `gradient` [P, *shape] to fp32 `out_PD` [P, dim]."""
        flat_PC = gradient.reshape(len(gradient), -1)
        for start in range(0, flat_PC.shape[1], BLOCK):
            end = min(start + BLOCK, flat_PC.shape[1])
            kept, bucket, sign = self._block(name, start, end, gradient.device)
            values_PC = flat_PC[:, start:end]
            if len(kept) < end - start:
                values_PC = values_PC[:, kept]
            out_PD.index_add_(1, bucket, values_PC * sign)

    def coordinates(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept mask (bool), bucket (int64) and scaled sign (fp32) of int64 places."""
        first, second = (mix64(places, key) for key in hash_keys(self.seed))
        keep = _shift_right(first, 11) < int(self.ratio * (1 << 53))
        bucket = _shift_right(second, 2) % self.dim
        sign = (second & 1).to(torch.float32) * 2 - 1
        return keep, bucket, sign / math.sqrt(self.ratio)

    def _block(
        self, name: str, start: int, end: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions kept within a block, their buckets and signs; cached while small."""
        if (name, start) in self._cache:
            return self._cache[name, start]
        offset = self._offsets[name]
        places = torch.arange(offset + start, offset + end, dtype=torch.int64, device=device)
        keep, bucket, sign = self.coordinates(places)
        kept = keep.nonzero().squeeze(1)
        block = (kept, bucket[kept], sign[kept])
        size = sum(t.numel() * t.element_size() for t in block)
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[name, start] = block
            self._cached_bytes += size
        return block
