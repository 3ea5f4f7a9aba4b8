"""Sketches by name, or the user's own by `package.module:object`."""

from __future__ import annotations

from collections.abc import Mapping

from cropi.plugins import find_plugin
from cropi.sketches.adaptive import AdaptiveSketch, default_width
from cropi.sketches.factorised import FactorisedSketch
from cropi.sketches.kronecker import KroneckerSketch
from cropi.sketches.sketch import Sketch
from cropi.sketches.sparse import SparseSketch
from cropi.sketches.windowed import WindowedSketch

Shapes = Mapping[str, tuple[int, ...]]

SKETCHES = {
    name: f"cropi.sketches.registry:{name}"
    for name in ("adaptive", "factorised", "kronecker", "sparse", "windowed")
}


def make_sketch(
    name: str,
    shapes: Shapes,
    seed: int,
    dim: int = 8192,
    ratio: float = 0.15,
    projection: str = "hash",
) -> Sketch:
    """Return the sketch `name` of parameters with these shapes.

    `name` is a key of SKETCHES, or `package.module:object` of something that is called as
    object(shapes=, seed=, dim=, ratio=, projection=) and returns a Sketch. `ratio` (a share of the
    coordinates) matters to sparse and factorised, `projection` (hash, rademacher or gaussian) to
    sparse alone. Raises InputError for an unknown name or a value out of range.
    """
    factory = find_plugin("sketch", name, SKETCHES)
    sketch: Sketch = factory(shapes=shapes, seed=seed, dim=dim, ratio=ratio, projection=projection)
    return sketch


def adaptive(shapes: Shapes, seed: int, dim: int, ratio: float, projection: str) -> Sketch:
    """Learnt directions of a wide windowed hashing, and the rest hashed."""
    return AdaptiveSketch(WindowedSketch(shapes, seed, default_width(dim)), dim, seed)


def factorised(shapes: Shapes, seed: int, dim: int, ratio: float, projection: str) -> Sketch:
    """A mask of rows times columns, then hashing."""
    return FactorisedSketch(shapes, seed, ratio, dim)


def kronecker(shapes: Shapes, seed: int, dim: int, ratio: float, projection: str) -> Sketch:
    """Both sides of every matrix projected, then hashing."""
    return KroneckerSketch(shapes, seed, dim)


def sparse(shapes: Shapes, seed: int, dim: int, ratio: float, projection: str) -> Sketch:
    """The paper's mask, then a projection."""
    return SparseSketch(shapes, seed, ratio, dim, projection)


def windowed(shapes: Shapes, seed: int, dim: int, ratio: float, projection: str) -> Sketch:
    """Signed hashing of pieces of rows."""
    return WindowedSketch(shapes, seed, dim)
