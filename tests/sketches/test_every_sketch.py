"""Invariants that every sketch keeps: unbiased, linear, the same map whatever the tiles."""

from __future__ import annotations

import math

import pytest
import torch

from cropi.errors import InputError
from cropi.plugins import plugin_names
from cropi.sketches import (
    FactorisedSketch,
    KroneckerSketch,
    PlainSketch,
    Sketch,
    SparseSketch,
    WindowedSketch,
    make_sketch,
)
from cropi.sketches.adaptive import AdaptiveSketch
from support.sketching import SHAPES, assert_close, flat, inner_products, project, vectors

MAKE = {
    "sparse": lambda seed, shapes=SHAPES: SparseSketch(shapes, seed, 0.5, 64),
    "hash": lambda seed, shapes=SHAPES: SparseSketch(shapes, seed, 1.0, 64),
    "rademacher": lambda seed, shapes=SHAPES: SparseSketch(shapes, seed, 0.5, 70, "rademacher"),
    "gaussian": lambda seed, shapes=SHAPES: SparseSketch(shapes, seed, 0.5, 64, "gaussian"),
    "windowed": lambda seed, shapes=SHAPES: WindowedSketch(shapes, seed, 64),
    "factorised": lambda seed, shapes=SHAPES: FactorisedSketch(shapes, seed, 0.3, 64),
    "kronecker": lambda seed, shapes=SHAPES: KroneckerSketch(shapes, seed, 64, 8),
}


@pytest.fixture(params=MAKE)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


FEW = {"b.weight": (12, 20), "a.bias": (40,), "c.weight": (5, 6, 3), "d.scale": ()}
"""Few coordinates, because unbiasedness is tested over hundreds of seeds."""


def test_inner_products_are_unbiased(kind: str) -> None:
    gradients = vectors(2, shapes=FEW)
    gradients = {n: torch.stack([g[0], g[0] + 0.5 * g[1]]) for n, g in gradients.items()}
    true = flat(gradients) @ flat(gradients).T
    actual = inner_products(lambda seed: MAKE[kind](seed, FEW), gradients, 300)
    error = actual.std(0) / math.sqrt(300)
    assert ((actual.mean(0) - true).abs() < 4 * error).all()


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 29])
@pytest.mark.parametrize("listed", [False, True])
def test_tile_by_tile_equals_whole(kind: str, rows: int, listed: bool) -> None:
    gradients = vectors(3)
    expected = project(MAKE[kind](5), gradients)
    assert_close(project(MAKE[kind](5), gradients, rows, listed), expected)


def test_rows_may_come_in_any_order_and_zero_rows_not_at_all(kind: str) -> None:
    gradients = vectors(2)
    gradients["b.weight"][:, ::2] = 0
    expected = project(MAKE[kind](5), gradients)
    odd = torch.arange(1, 30, 2)[torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    actual = torch.zeros(2, expected.shape[1])
    for name, gradient in gradients.items():
        rows = odd if name == "b.weight" else torch.arange(gradient.shape[1])
        MAKE[kind](5).project(name, rows, gradient[:, rows], actual)
    assert_close(actual.double(), expected)


def test_one_sketch_used_again_gives_the_same(kind: str) -> None:
    gradients, sketch = vectors(3), MAKE[kind](5)
    assert torch.equal(project(sketch, gradients), project(sketch, gradients))


def test_the_map_depends_on_seed_names_and_shapes_alone(kind: str) -> None:
    gradients = vectors(3)
    reordered = dict(reversed(SHAPES.items()))
    one, other = MAKE[kind](5), MAKE[kind](5, reordered)
    backwards = {name: gradients[name] for name in reordered}
    assert_close(project(other, backwards), project(one, gradients))
    assert other.identity == one.identity


def test_another_map_has_another_identity(kind: str) -> None:
    make = MAKE[kind]
    others = [
        make(6),
        make(5, {**SHAPES, "a.bias": (71,)}),
        make(5, {**SHAPES, "e.bias": (1,)}),
        *(make_other(5) for name, make_other in MAKE.items() if name != kind),
    ]
    assert all(other.identity != make(5).identity for other in others)
    assert all(isinstance(value, str) for value in make(5).identity.values())


def test_the_sketch_is_linear_and_prompts_do_not_mix(kind: str) -> None:
    gradients, sketch = vectors(3), MAKE[kind](5)
    both = project(sketch, gradients)
    summed = project(sketch, {n: (g[0] + 2 * g[1])[None] for n, g in gradients.items()})
    assert_close(summed[0], both[0] + 2 * both[1])


def test_neighbouring_seeds_are_independent(kind: str) -> None:
    gradients = vectors(1)
    one, two = (project(MAKE[kind](seed), gradients)[0] for seed in (0, 1))
    assert abs(float(torch.nn.functional.cosine_similarity(one, two, 0))) < 0.6
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", [n for n in plugin_names("sketch") if n != "exact"])
def test_every_name_makes_a_sketch_of_the_requested_dimensions(name: str) -> None:
    sketch = make_sketch(name, SHAPES, 3, dim=32)
    assert sketch.dim == 32
    assert sketch.identity["seed"] == "3"
    wide = project(sketch, vectors(40)).float()
    if isinstance(sketch, AdaptiveSketch):
        sketch.fit(wide)
    assert sketch.compress(wide).shape == (40, 32)


class UserSketch(PlainSketch):
    """The sum of all coordinates."""

    def __init__(self, shapes: dict, seed: int) -> None:
        self.dim, self.identity = 1, {"sketch": "user"}

    def project(self, name: str, rows: object, gradient_PRI: torch.Tensor, out: object) -> None:
        out += gradient_PRI.sum((1, 2))[:, None]


def test_a_user_defined_sketch_is_loaded_by_its_path() -> None:
    sketch: Sketch = make_sketch(f"{__name__}:UserSketch", SHAPES, 0)
    gradients = vectors(2)
    assert_close(project(sketch, gradients)[:, 0], flat(gradients).sum(1))


def no_sketch(shapes: dict, seed: int) -> None:
    """A plug-in that forgets to return what it made."""


def half_a_sketch(shapes: dict, seed: int) -> object:
    return type("Half", (), {"dim": 4, "width": 4})()


@pytest.mark.parametrize("name", ["no_sketch", "half_a_sketch"])
def test_what_is_no_sketch_is_refused_by_what_it_lacks(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}' made .* which lacks .*compress; return an"):
        make_sketch(f"{__name__}:{name}", SHAPES, 0)


def test_unknown_names_and_values_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"'adaptiv'.*did you mean 'adaptive'"):
        make_sketch("adaptiv", SHAPES, 0)
    with pytest.raises(InputError, match=r"'fourier'.*'hash', 'rademacher' or 'gaussian'"):
        make_sketch("sparse", SHAPES, 0, projection="fourier")
    for name in ("sparse", "factorised"):
        with pytest.raises(InputError, match=r"ratio = 0\.0.*greater than 0"):
            make_sketch(name, SHAPES, 0, ratio=0.0)
