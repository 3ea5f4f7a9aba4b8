"""Signed hashing that moves whole pieces of rows: the fastest sketch of a dense gradient.

Every coordinate has an independent sign, but coordinates move in pieces: a row, or a part of one
that is at most 1/16 as long as the sketch, is added to a window of neighbouring buckets with a
random start. That is one contiguous sum instead of a scatter, and 64 signs come from one hash.

The error is not larger than that of signed hashing of single coordinates. With independent signs
the variance of <Pa, Pb> is a sum over *pairs* of coordinates of the probability that they collide.
Two coordinates of one piece never collide; two of different pieces with starts uniform in [0, n)
collide with probability at most 1/n, and n > 15/16 dim. So
Var <Pa, Pb> <= (|a|^2 |b|^2 + <a, b>^2 - 2 sum a_i^2 b_i^2) / n.

Shape legend: P prompts, R rows, I width, W buckets, K pieces of a row, L their length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from cropi.gradients.contributions import Workspace, matrix_shape
from cropi.plugins import plugin
from cropi.settings import Count, Section
from cropi.sketches.counter_rng import (
    WORD,
    CoordinateIndex,
    below,
    keys,
    mix64,
    parameters_identity,
    row_numbers,
    signs,
)
from cropi.sketches.sketch import PlainSketch, Shapes, Sketch

PIECES = 16
"""A piece is at most 1/PIECES as long as the sketch, so that few starts are excluded."""

SIGNED_CHUNK = 1 << 18
"""Signed gradients made at once: they should stay in a CPU's cache."""

DRAWN_CHUNK = 1 << 17
"""Coordinates whose signs are drawn at once: with fewer, calls cost more than numbers."""

CACHE_BYTES = 1 << 26
"""Memory for signs and starts drawn earlier. It saves small models the calls; what does not fit is
drawn again, which costs about a quarter of a nanosecond per coordinate and prompt."""


@dataclass
class WindowedSketch(PlainSketch):
    """Signed hashing of pieces of rows to `dim` buckets. `shapes` are the parameters' by name."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    dim: int
    _words: CoordinateIndex = field(init=False, repr=False)
    _starts: CoordinateIndex = field(init=False, repr=False)
    _work: Workspace | None = field(init=False, repr=False, default=None)
    _cache: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = field(
        init=False, repr=False, default_factory=dict
    )
    _cached_bytes: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        longest = max(1, self.dim // PIECES)
        self._words = CoordinateIndex(self.shapes, lambda width: -(-width // WORD))
        self._starts = CoordinateIndex(self.shapes, lambda width: -(-width // longest))

    @property
    def identity(self) -> dict[str, str]:
        """Seed, size and a hash over names and shapes."""
        return {
            "sketch": "windowed",
            "seed": str(self.seed),
            "dim": str(self.dim),
            "parameters": parameters_identity(self.shapes),
        }

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the sketch of fp32 `gradient_PRI`, some rows of a parameter, to fp32 `out_PW`."""
        height, width = gradient_PRI.shape[1:]
        device = gradient_PRI.device
        if (cached := self._cached(name, device)) is not None:
            signs_OI, starts_OK = cached
            self._add(name, signs_OI[rows], starts_OK[rows], gradient_PRI, out_PW)
            return
        numbers_R = row_numbers(rows, device)
        step = height if gradient_PRI.is_cuda else max(1, DRAWN_CHUNK // max(1, width))
        for first in range(0, height, step):
            part = slice(first, first + step)
            signs_RI = self.signs(name, numbers_R[part])
            starts_RK = self.starts(name, numbers_R[part])
            self._add(name, signs_RI, starts_RK, gradient_PRI[:, part], out_PW)

    def piece_length(self, name: str) -> int:
        """Length of each piece of a row; the last one may extend beyond the row."""
        _, width = matrix_shape(self.shapes[name])
        return -(-width // self._starts.per_row[name])

    def signs(self, name: str, rows_R: Tensor) -> Tensor:
        """Signs fp32 [R, I] of the coordinates in some rows."""
        _, width = matrix_shape(self.shapes[name])
        (key,) = keys("windowed.signs", self.seed, 1)
        mixed = mix64(self._words.places(name, rows_R).flatten(), key)
        return signs(mixed).view(len(rows_R), -1)[:, :width]

    def starts(self, name: str, rows_R: Tensor) -> Tensor:
        """First buckets int64 [R, K] of the pieces of some rows."""
        (key,) = keys("windowed.starts", self.seed, 1)
        mixed = mix64(self._starts.places(name, rows_R), key)
        return below(mixed, self.dim - self.piece_length(name) + 1)

    def _add(
        self, name: str, signs_RI: Tensor, starts_RK: Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Sign and add as many rows at a time as fit in the CPU's cache."""
        prompts, height, width = gradient_PRI.shape
        length = self.piece_length(name)
        step = height if gradient_PRI.is_cuda else max(1, SIGNED_CHUNK // max(1, prompts * width))
        for first in range(0, height, step):
            part = slice(first, first + step)
            signed = self._signed(gradient_PRI[:, part], signs_RI[part])
            padded = self._padded(signed, starts_RK.shape[1] * length)
            add_windows(out_PW, starts_RK[part].flatten(), padded.view(prompts, -1, length))

    def _cached(self, name: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Signs and starts of a whole parameter; None where there is no memory for them."""
        if (name, device) in self._cache:
            return self._cache[name, device]
        height, width = matrix_shape(self.shapes[name])
        size = height * (4 * width + 8 * self._starts.per_row[name])
        if self._cached_bytes + size > CACHE_BYTES:
            return None
        rows_O = torch.arange(height, dtype=torch.int64, device=device)
        self._cache[name, device] = self.signs(name, rows_O), self.starts(name, rows_O)
        self._cached_bytes += size
        return self._cache[name, device]

    def _signed(self, gradient_PRI: Tensor, signs_RI: Tensor) -> Tensor:
        if self._work is None or self._work.device != gradient_PRI.device:
            self._work = Workspace(gradient_PRI.device)
        out = self._work.take(tuple(gradient_PRI.shape), torch.float32)
        return torch.mul(gradient_PRI, signs_RI, out=out)

    def _padded(self, values_PRI: Tensor, width: int) -> Tensor:
        """Rows padded with zeros to whole pieces."""
        missing = width - values_PRI.shape[2]
        return torch.nn.functional.pad(values_PRI, (0, missing)) if missing else values_PRI


def add_windows(out_PW: Tensor, starts_N: Tensor, pieces_PNL: Tensor) -> None:
    """out[p, starts[n] + l] += pieces[p, n, l].

    On a CPU `index_add_` adds one contiguous piece after the other, so windows may overlap; a GPU
    adds all at once and needs every place explicitly.
    """
    length = pieces_PNL.shape[2]
    if out_PW.device.type == "cpu":
        out_PW.unfold(1, length, 1).index_add_(1, starts_N, pieces_PNL)
        return
    places = starts_N.unsqueeze(1) + torch.arange(length, device=out_PW.device)
    out_PW.index_add_(1, places.flatten(), pieces_PNL.flatten(1))


class WindowedSettings(Section):
    """Settings of the sketch `windowed`."""

    dim: Count = Field(8192, description="dimensions of the sketch")


@plugin("sketch", "windowed", WindowedSettings)
def windowed(settings: WindowedSettings, shapes: Shapes, seed: int) -> Sketch:
    """Signed hashing of pieces of rows."""
    return WindowedSketch(shapes, seed, settings.dim)
