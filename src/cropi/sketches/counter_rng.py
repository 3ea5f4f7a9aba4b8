"""Counter-based random numbers: reproducible on any machine in any order, and never stored.

Whatever needs randomness (a coordinate, the start of a piece, sixty-four signs) has a 64-bit
number, its *place*; a 64-bit mix of place and key is its randomness. Keys come from the seed and a
purpose, so that two uses of one seed are independent.

Shape legend: R rows, N any number of items.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from cropi.gradients.contributions import matrix_shape
from cropi.schema import fingerprint

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
WORD = 64
"""Signs in one 64-bit number."""


@cache
def keys(purpose: str, seed: int, count: int = 2) -> tuple[int, ...]:
    """`count` (at most 4) int64 keys for one purpose of a seed.

    They are hashes, because keys that differ by k give the same numbers, shifted by k places.
    """
    digest = hashlib.sha256(f"cropi.{purpose}/{seed}".encode()).digest()
    parts = [digest[n : n + 8] for n in range(0, 8 * count, 8)]
    return tuple(int.from_bytes(part, "little", signed=True) for part in parts)


def mix64(places_N: Tensor, key: int) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood, 2014) of int64 places; wraps like unsigned arithmetic."""
    state = (places_N + key).mul_(GOLDEN)
    state.bitwise_xor_(shift_right(state, 30)).mul_(MIX_1)
    state.bitwise_xor_(shift_right(state, 27)).mul_(MIX_2)
    return state.bitwise_xor_(shift_right(state, 31))


def shift_right(values_N: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's shift is arithmetic, so the copied sign bits are cleared."""
    return (values_N >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def below(mixed_N: Tensor, limit: int) -> Tensor:
    """Mixed numbers as uniform int64 in [0, limit); uses all but their two lowest bits."""
    positive = shift_right(mixed_N, 2)
    return positive.bitwise_and_(limit - 1) if limit & (limit - 1) == 0 else positive % limit


def signs(mixed_N: Tensor) -> Tensor:
    """Every bit of int64 mixed numbers as a sign: fp32 [N, 64] of +1 and -1, lowest bit first."""
    octets = mixed_N.contiguous().view(torch.uint8).to(torch.int32)
    return _octet_signs(mixed_N.device).index_select(0, octets).view(-1, WORD)


@cache
def _octet_signs(device: torch.device) -> Tensor:
    """Row b holds the eight signs of byte b: looking them up is cheaper than shifting bits."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return (bits * 2 - 1).float().to(device)


def gaussians(places_N: Tensor, key: int) -> Tensor:
    """Standard normal fp32, one per place: Box and Muller (1958) on two halves of the mix."""
    mixed = mix64(places_N, key)
    radius = (shift_right(mixed, 32).double() + 0.5) / 2**32
    angle = (mixed & 0xFFFFFFFF).double() / 2**32
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def lowest(numbers_N: Tensor, count: int) -> Tensor:
    """Sorted places int64 of the `count` lowest numbers; of mixed numbers, a uniform sample."""
    return numbers_N.argsort(stable=True)[:count].sort().values


def row_numbers(rows: slice | Tensor, device: torch.device) -> Tensor:
    """Rows of a tile as int64 [R]."""
    if isinstance(rows, Tensor):
        return rows.to(device)
    return torch.arange(rows.start, rows.stop, dtype=torch.int64, device=device)


class CoordinateIndex:
    """Places of `per_row(width)` items in each row of each parameter: names sorted, no gaps."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], per_row: Callable[[int], int]
    ) -> None:
        self.per_row: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        total = 0
        for name in sorted(shapes):
            height, width = matrix_shape(shapes[name])
            self.per_row[name], self.offsets[name] = per_row(width), total
            total += height * self.per_row[name]
        self.total = total

    def places(self, name: str, rows_R: Tensor) -> Tensor:
        """Places int64 [R, per_row] of the items in some rows of a parameter."""
        per_row = self.per_row[name]
        within = torch.arange(per_row, dtype=torch.int64, device=rows_R.device)
        return (rows_R * per_row + self.offsets[name]).unsqueeze(1) + within


def parameters_identity(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A hash over names and shapes, whatever their order."""
    return fingerprint(sorted((name, list(shape)) for name, shape in shapes.items()))
