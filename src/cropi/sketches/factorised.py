"""A mask that is a product: random rows times random columns of every matrix, then hashing.

The gradient of a linear layer is a sum of outer products, so the kept block costs its share of the
multiplications and the rest is never computed. The price is a mask whose coordinates are not
independent: a heavy row or column is kept or dropped as a whole.

Of a matrix sqrt(ratio) of the rows and of the columns are kept, of a vector `ratio` of the entries,
drawn without replacement and at least one each; a kept block is scaled by sqrt(all / kept), so
inner products are unbiased.

Shape legend: P prompts, R rows kept, C columns kept, O rows, I width, W = D buckets.
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
from cropi.settings import Count, Fraction, Section
from cropi.sketches.counter_rng import (
    CoordinateIndex,
    keys,
    lowest,
    mix64,
    parameters_identity,
    row_numbers,
)
from cropi.sketches.sketch import PlainSketch, Shapes, Sketch
from cropi.sketches.sparse import check_ratio
from cropi.sketches.windowed import WindowedSketch

BLOCK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Memory of the kept blocks that exist at once."""


@dataclass
class FactorisedSketch(PlainSketch):
    """Random rows x random columns of each parameter, hashed to `dim` dimensions.

    Raises InputError for a ratio that is not within (0, 1].
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    ratio: float
    dim: int
    _indices: dict[str, tuple[Tensor, Tensor]] = field(init=False, repr=False)
    _inner: WindowedSketch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        self._indices = self._draw()
        blocks = {name: (len(r), len(c)) for name, (r, c) in self._indices.items()}
        self._inner = WindowedSketch(blocks, self.seed, self.dim)

    @property
    def identity(self) -> dict[str, str]:
        """Seed, sizes and a hash over names and shapes."""
        return {
            "sketch": "factorised",
            "seed": str(self.seed),
            "ratio": repr(self.ratio),
            "dim": str(self.dim),
            "parameters": parameters_identity(self.shapes),
        }

    def kept_indices(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns of a parameter that are kept, sorted int64."""
        rows_R, columns_C = (t.to(device) for t in self._indices[name])
        self._indices[name] = rows_R, columns_C
        return rows_R, columns_C

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the sketch of fp32 `gradient_PRI`, some rows of a parameter, to fp32 `out_PW`."""
        rows_R, columns_C = self.kept_indices(name, gradient_PRI.device)
        numbers = row_numbers(rows, gradient_PRI.device)
        slots = torch.searchsorted(rows_R, numbers).clamp_(max=len(rows_R) - 1)
        present = (rows_R[slots] == numbers).nonzero().squeeze(1)
        if len(present):
            block = gradient_PRI[:, present][:, :, columns_C]
            self._inner.project(name, slots[present], block * self._scale(name), out_PW)

    def takes_factors(self, name: str) -> bool:
        """The block is cheaper from the factors for every parameter."""
        return True

    def project_factors(
        self, name: str, contributions: Sequence[Contribution], out_PW: Tensor
    ) -> None:
        """Compute the kept block, some rows at a time, and hash it."""
        rows_R, columns_C = self.kept_indices(name, out_PW.device)
        limit = BLOCK_BYTES.get(out_PW.device.type, 1 << 28)
        step = max(1, limit // (4 * max(1, len(out_PW)) * len(columns_C)))
        for first in range(0, len(rows_R), step):
            part = slice(first, min(first + step, len(rows_R)))
            blocks = [c.select(rows_R[part], columns_C) for c in contributions]
            block = torch.stack(blocks).sum(0) if len(blocks) > 1 else blocks[0]
            self._inner.project(name, part, block * self._scale(name), out_PW)

    def _scale(self, name: str) -> float:
        rows_R, columns_C = self._indices[name]
        height, width = matrix_shape(self.shapes[name])
        return math.sqrt(height * width / (len(rows_R) * len(columns_C)))

    def _draw(self) -> dict[str, tuple[Tensor, Tensor]]:
        row_key, column_key = keys("factorised", self.seed)
        heights = {n: (matrix_shape(s)[0],) for n, s in self.shapes.items()}
        row_index = CoordinateIndex(heights, lambda height: height)
        column_index = CoordinateIndex(self.shapes, lambda width: width)
        first_row = torch.zeros(1, dtype=torch.int64)
        indices = {}
        for name, shape in self.shapes.items():
            height, _ = matrix_shape(shape)
            share = self.ratio if height == 1 else math.sqrt(self.ratio)
            row_numbers_O = mix64(row_index.places(name, first_row)[0], row_key)
            column_numbers_I = mix64(column_index.places(name, first_row)[0], column_key)
            indices[name] = _share(row_numbers_O, share), _share(column_numbers_I, share)
        return indices


def _share(numbers_N: Tensor, share: float) -> Tensor:
    """Sorted places of a share of the numbers, the lowest; at least one."""
    return lowest(numbers_N, max(1, round(share * len(numbers_N))))


class FactorisedSettings(Section):
    """Settings of the sketch `factorised`."""

    ratio: Fraction = Field(0.15, description="share of coordinates kept")
    dim: Count = Field(8192, description="dimensions of the sketch")


@plugin("sketch", "factorised", FactorisedSettings)
def factorised(settings: FactorisedSettings, shapes: Shapes, seed: int) -> Sketch:
    """A mask of rows times columns, then hashing."""
    return FactorisedSketch(shapes, seed, settings.ratio, settings.dim)
