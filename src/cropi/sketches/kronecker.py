"""Kronecker-factored sketches: L^T G R of every matrix, then hashing.

L and R are random signs with `side` columns each, so that sum_t g_t x_t^T becomes
sum_t (L^T g_t)(R^T x_t)^T: the dense gradient never exists, and a token costs
side * (rows + columns) multiplications instead of rows * columns. An axis that is not longer than
`side` is not projected, and vectors are left as they are. The result, at most side^2 numbers per
matrix, is hashed to `dim`.

Scaled by 1/side, inner products are unbiased. Their variance is above that of hashing every
coordinate, by a factor that grows with the rank of the gradient.

Shape legend: P prompts, R rows, O all rows, I width, A and B columns of L and R, W = D buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from cropi.gradients.contributions import Contribution, matrix_shape
from cropi.plugins import plugin
from cropi.settings import Count, Section
from cropi.sketches.counter_rng import WORD, keys, mix64, parameters_identity, row_numbers, signs
from cropi.sketches.sketch import PlainSketch, Shapes, Sketch
from cropi.sketches.windowed import WindowedSketch

CACHE_BYTES = 1 << 28
"""Memory for maps made earlier."""


@dataclass
class KroneckerSketch(PlainSketch):
    """L^T G R of each matrix, at most `side` x `side`, hashed to `dim` dimensions."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    dim: int
    side: int = 64
    _inner: WindowedSketch = field(init=False, repr=False)
    _cache: dict[tuple[str, str, torch.device], Tensor] = field(
        init=False, repr=False, default_factory=dict
    )
    _cached_bytes: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        blocks = {name: self._block_shape(name) for name in self.shapes}
        self._inner = WindowedSketch(blocks, self.seed, self.dim)

    @property
    def identity(self) -> dict[str, str]:
        """Seed, sizes and a hash over names and shapes."""
        return {
            "sketch": "kronecker",
            "seed": str(self.seed),
            "side": str(self.side),
            "dim": str(self.dim),
            "parameters": parameters_identity(self.shapes),
        }

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the sketch of fp32 `gradient_PRI`, some rows of a parameter, to fp32 `out_PW`."""
        if not self.takes_factors(name):
            self._inner.project(name, rows, gradient_PRI, out_PW)
            return
        left_OA, right_IB = self.maps(name, gradient_PRI.device)
        left_RA = left_OA[row_numbers(rows, gradient_PRI.device)]
        self._hash(name, left_RA.T @ (gradient_PRI @ right_IB), out_PW)

    def takes_factors(self, name: str) -> bool:
        """Matrices are cheaper from their factors; vectors are not projected."""
        return matrix_shape(self.shapes[name])[0] > 1

    def project_factors(
        self, name: str, contributions: Sequence[Contribution], out_PW: Tensor
    ) -> None:
        """Project both factors of every token, then sum their products."""
        maps = self.maps(name, out_PW.device)
        for contribution in contributions:
            self._hash(name, contribution.project(*maps), out_PW)

    def maps(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """L fp32 [O, A] and R fp32 [I, B] of +1 and -1, or the identity for a short axis."""
        height, width = matrix_shape(self.shapes[name])
        return self._map(name, "left", height, device), self._map(name, "right", width, device)

    def _hash(self, name: str, block_PAB: Tensor, out_PW: Tensor) -> None:
        """Hash a block; the maps' scale is applied here, because signs alone are exact in bf16."""
        shape = matrix_shape(self.shapes[name])
        scale = 1 / math.sqrt(math.prod(self.side for length in shape if length > self.side))
        self._inner.project(name, slice(0, block_PAB.shape[1]), block_PAB * scale, out_PW)

    def _map(self, name: str, end: str, length: int, device: torch.device) -> Tensor:
        if length <= self.side:
            return torch.eye(length, device=device)
        if (name, end, device) in self._cache:
            return self._cache[name, end, device]
        (key,) = keys(f"kronecker.{end}.{name}", self.seed, 1)
        words = -(-self.side // WORD)
        counters = torch.arange(length * words, dtype=torch.int64, device=device)
        random_map = signs(mix64(counters, key)).view(length, -1)[:, : self.side]
        size = random_map.numel() * random_map.element_size()
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[name, end, device] = random_map
            self._cached_bytes += size
        return random_map

    def _block_shape(self, name: str) -> tuple[int, int]:
        height, width = matrix_shape(self.shapes[name])
        if height == 1:
            return height, width
        return min(height, self.side), min(width, self.side)


class KroneckerSettings(Section):
    """Settings of the sketch `kronecker`."""

    dim: Count = Field(8192, description="dimensions of the sketch")


@plugin("sketch", "kronecker", KroneckerSettings)
def kronecker(settings: KroneckerSettings, shapes: Shapes, seed: int) -> Sketch:
    """Both sides of every matrix projected, then hashing."""
    return KroneckerSketch(shapes, seed, settings.dim)
