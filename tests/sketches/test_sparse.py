"""Invariant 4: the sparse sketch is unbiased, within its bound, and the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cropi.sketches import SketchConsumer, SparseSketch
from cropi.sketches import sparse as module
from cropi.sketches.sparse import hash_keys, mix64

SHAPES = {"b.weight": (30, 40), "a.bias": (70,), "c.weight": (9, 11, 5)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
MASK = (1 << 64) - 1


def python_mix64(place: int, key: int) -> int:
    """SplitMix64 on Python's own integers, reduced by hand to 64 bits."""
    state = ((place + key) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def python_coordinate(place: int, seed: int, ratio: float, dim: int) -> tuple[bool, int, float]:
    """Kept, bucket and scaled sign of one place."""
    first, second = (python_mix64(place, key) for key in hash_keys(seed))
    sign = 1.0 if second & 1 else -1.0
    return (first >> 11) < int(ratio * 2**53), (second >> 2) % dim, sign / math.sqrt(ratio)


def vectors(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, *s, generator=generator) for n, s in SHAPES.items()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1) for g in gradients.values()], 1).double()


def project(sketch: SparseSketch, gradients: dict[str, Tensor]) -> Tensor:
    count = len(next(iter(gradients.values())))
    out = torch.zeros(count, sketch.dim)
    for name, gradient in gradients.items():
        sketch.project(name, gradient, out)
    return out.double()


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_inner_products_are_unbiased(ratio: float) -> None:
    gradients = vectors(2)
    gradients = {n: torch.stack([g[0], g[0] + 0.5 * g[1]]) for n, g in gradients.items()}
    true = flat(gradients) @ flat(gradients).T
    found = []
    for seed in range(300):
        out = project(SparseSketch(SHAPES, seed, ratio, 64), gradients)
        found.append(out @ out.T)
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(300)
    assert ((mean - true).abs() < 4 * error).all()


@pytest.mark.parametrize("dim", [64, 512])
def test_the_error_of_inner_products_meets_the_bound_of_signed_hashing(dim: int) -> None:
    """Var <Pa, Pb> = (|a|^2 |b|^2 + <a,b>^2 - 2 sum a_i^2 b_i^2) / d, for a full mask."""
    gradients = vectors(2, seed=1)
    a, b = flat(gradients)
    bound = (a @ a) * (b @ b) + (a @ b) ** 2 - 2 * (a * a) @ (b * b)
    errors = []
    for seed in range(200):
        out = project(SparseSketch(SHAPES, seed, 1.0, dim), gradients)
        errors.append(float(out[0] @ out[1] - a @ b))
    assert np.mean(np.square(errors)) == pytest.approx(float(bound) / dim, rel=0.3)


def test_a_full_mask_keeps_every_coordinate() -> None:
    keep, _, sign = SparseSketch(SHAPES, 7, 1.0, 16).coordinates(torch.arange(10_000))
    assert keep.all()
    assert set(sign.tolist()) == {-1.0, 1.0}


def test_the_map_depends_on_seed_names_and_shapes_alone() -> None:
    gradients = vectors(3)
    expected = project(SparseSketch(SHAPES, 5, 0.5, 128), gradients)
    reordered = dict(reversed(SHAPES.items()))
    other_order = {n: gradients[n] for n in ("c.weight", "a.bias", "b.weight")}
    again = SparseSketch(reordered, 5, 0.5, 128)
    assert torch.allclose(project(again, other_order), expected, atol=1e-5)
    assert again.identity == SparseSketch(SHAPES, 5, 0.5, 128).identity


@pytest.mark.parametrize(
    "other",
    [
        SparseSketch(SHAPES, 6, 0.5, 128),
        SparseSketch(SHAPES, 5, 0.25, 128),
        SparseSketch(SHAPES, 5, 0.5, 64),
        SparseSketch({**SHAPES, "a.bias": (71,)}, 5, 0.5, 128),
        SparseSketch({**SHAPES, "d.bias": (1,)}, 5, 0.5, 128),
    ],
)
def test_another_map_has_another_identity(other: SparseSketch) -> None:
    assert other.identity != SparseSketch(SHAPES, 5, 0.5, 128).identity


def test_blocks_and_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = vectors(3)
    whole = SparseSketch(SHAPES, 5, 0.5, 128)
    expected = project(whole, gradients)
    assert torch.equal(project(whole, gradients), expected)
    monkeypatch.setattr(module, "BLOCK", 17)
    monkeypatch.setattr(module, "CACHE_BYTES", 500)
    pieces = SparseSketch(SHAPES, 5, 0.5, 128)
    for _ in range(2):
        assert torch.allclose(project(pieces, gradients), expected, atol=1e-5)


def test_the_sketch_is_linear_and_prompts_do_not_mix() -> None:
    gradients = vectors(3)
    sketch = SparseSketch(SHAPES, 5, 0.5, 128)
    both = project(sketch, gradients)
    summed = project(sketch, {n: (g[0] + 2 * g[1])[None] for n, g in gradients.items()})
    assert torch.allclose(summed[0], both[0] + 2 * both[1], atol=1e-4)


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.5])
def test_the_mask_is_uniform_over_all_coordinates(ratio: float) -> None:
    """Chi-square over 64 regions: a mask from the first coordinates would fill one of them."""
    size, regions = 64 * 20_000, 64
    keep, _, _ = SparseSketch(SHAPES, 3, ratio, 16).coordinates(torch.arange(size))
    counts = keep.view(regions, -1).sum(1).double()
    expected = size / regions * ratio
    chi_square = float(((counts - expected) ** 2).sum() / (expected * (1 - ratio)))
    # Mean 64, standard deviation sqrt(128): between -4 and +5 standard deviations.
    assert 64 - 4 * 11.4 < chi_square < 64 + 5 * 11.4


def test_buckets_and_signs_are_uniform_and_independent_of_the_mask() -> None:
    keep, bucket, sign = SparseSketch(SHAPES, 3, 0.15, 16).coordinates(torch.arange(200_000))
    for chosen in (torch.ones_like(keep), keep):
        counts = torch.bincount(bucket[chosen], minlength=16).double()
        expected = float(chosen.sum()) / 16
        assert float(((counts - expected) ** 2).sum() / expected) < 16 + 5 * math.sqrt(32)
        assert abs(float(sign[chosen].sign().mean())) < 5 / math.sqrt(float(chosen.sum()))


@pytest.mark.parametrize("other", [1, 2, 5])
def test_neighbouring_seeds_are_not_shifted_copies(other: int) -> None:
    places = torch.arange(20_000)
    one, two = (SparseSketch(SHAPES, s, 0.5, 16).coordinates(places)[0] for s in (0, other))
    for shift in range(-12, 13):
        same = (one == two.roll(shift)).double().mean()
        assert abs(float(same) - 0.5) < 0.03


@pytest.mark.parametrize(
    "place", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 12345, 2**40 + 7, 2**62]
)
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_index_arithmetic_is_right_beyond_32_bits(place: int, seed: int) -> None:
    places = torch.arange(place, place + 5, dtype=torch.int64)
    for key in hash_keys(seed):
        found = [value & MASK for value in mix64(places, key).tolist()]
        assert found == [python_mix64(p, key) for p in range(place, place + 5)]
    keep, bucket, sign = SparseSketch(SHAPES, seed, 0.3, 8191).coordinates(places)
    for n, expected in enumerate(python_coordinate(p, seed, 0.3, 8191) for p in places.tolist()):
        found = (bool(keep[n]), int(bucket[n]), float(sign[n]))
        assert found == (expected[0], expected[1], pytest.approx(expected[2], rel=1e-6))


def test_places_go_on_beyond_32_bits_where_a_model_is_that_large() -> None:
    shapes = {"a": (2**33, 1), "b": (50,)}
    sketch = SparseSketch(shapes, 11, 1.0, 97)
    gradient = torch.arange(1.0, 51.0)[None]
    found, expected = torch.zeros(1, 97), torch.zeros(97)
    sketch.project("b", gradient, found)
    for place, value in enumerate(gradient[0].tolist()):
        _, bucket, sign = python_coordinate(2**33 + place, 11, 1.0, 97)
        expected[bucket] += sign * value
    assert torch.allclose(found[0], expected)


def test_the_consumer_adds_parameters_and_keeps_prompts_apart() -> None:
    gradients = vectors(4)
    sketch = SparseSketch(SHAPES, 2, 0.5, 32)
    consumer = SketchConsumer(sketch, 4, torch.device("cpu"))
    for name, gradient in gradients.items():
        for part in ([2, 0], [3, 1]):
            consumer.consume(name, torch.tensor(part), gradient[part])
    assert torch.allclose(consumer.sketches.double(), project(sketch, gradients), atol=1e-5)
