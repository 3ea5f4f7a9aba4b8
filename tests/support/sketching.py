"""What sketch tests share: shapes, random gradients, and sketches of them tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cropi.gradients.contributions import matrix_shape
from cropi.sketches import Sketch

SHAPES: dict[str, tuple[int, ...]] = {
    "b.weight": (30, 40),
    "a.bias": (70,),
    "c.weight": (9, 11, 5),
    "d.scale": (),
}

Make = Callable[[int], Sketch]
MASK = (1 << 64) - 1
"""Of the lowest 64 bits."""


def vectors(
    count: int, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    """Random gradients fp32 [P, R, I] by name."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, *matrix_shape(s), generator=generator) for n, s in shapes.items()}


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """The whole gradients, float64 [P, coordinates]."""
    return torch.cat([g.flatten(1) for g in gradients.values()], 1).double()


def project(
    sketch: Sketch, gradients: Mapping[str, Tensor], rows: int = 10**9, listed: bool = False
) -> Tensor:
    """Accumulated sketches float64 [P, W], in tiles of so many rows, ranges or lists."""
    count = len(next(iter(gradients.values())))
    out = torch.zeros(count, sketch.width)
    for name, gradient in gradients.items():
        for start in range(0, gradient.shape[1], rows):
            tile = slice(start, min(start + rows, gradient.shape[1]))
            numbers = torch.arange(tile.start, tile.stop) if listed else tile
            sketch.project(name, numbers, gradient[:, tile], out)
    return out.double()


def inner_products(make: Make, gradients: Mapping[str, Tensor], seeds: int) -> Tensor:
    """Inner products of the sketches under each seed, [seeds, P, P]."""
    actual = []
    for seed in range(seeds):
        out = project(make(seed), gradients)
        actual.append(out @ out.T)
    return torch.stack(actual)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of fp32 sums."""
    torch.testing.assert_close(actual.double(), expected.double(), atol=1e-4, rtol=1e-5)


def python_mix64(place: int, key: int) -> int:
    """SplitMix64 on Python's own integers, reduced by hand to 64 bits."""
    state = ((place + key) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)
