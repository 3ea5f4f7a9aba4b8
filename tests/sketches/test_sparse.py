"""Invariant 4: the sparse sketch is unbiased, within its bound, and the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cropi.sketches import SparseSketch
from cropi.sketches import sparse as module
from cropi.sketches.counter_rng import gaussians, mix64
from cropi.sketches.sparse import hash_keys
from support.sketching import MASK, SHAPES, assert_close, flat, project, python_mix64, vectors


def python_coordinate(place: int, seed: int, ratio: float, dim: int) -> tuple[bool, int, float]:
    """Kept, bucket and scaled sign of one place."""
    first, second = (python_mix64(place, key) for key in hash_keys(seed))
    sign = 1.0 if second & 1 else -1.0
    return (first >> 11) < int(ratio * 2**53), (second >> 2) % dim, sign / math.sqrt(ratio)


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
    mask, _, sign = SparseSketch(SHAPES, 7, 1.0, 16).coordinates(torch.arange(10_000))
    assert mask.all()
    assert set(sign.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    "other",
    [
        SparseSketch(SHAPES, 5, 0.25, 128),
        SparseSketch(SHAPES, 5, 0.5, 64),
        SparseSketch(SHAPES, 5, 0.5, 128, "gaussian"),
    ],
)
def test_another_setting_has_another_identity(other: SparseSketch) -> None:
    assert other.identity != SparseSketch(SHAPES, 5, 0.5, 128).identity


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("projection", ["hash", "rademacher"])
def test_blocks_and_the_cache_change_nothing(
    ratio: float, projection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = vectors(3)
    expected = project(SparseSketch(SHAPES, 5, ratio, 128, projection), gradients)
    monkeypatch.setattr(module, "BLOCK", 90)
    monkeypatch.setattr(module, "CACHE_BYTES", 3000)
    pieces = SparseSketch(SHAPES, 5, ratio, 128, projection)
    for rows in (4, 30, 7, 4):
        assert_close(project(pieces, gradients, rows), expected)
    assert 0 < pieces._cached_bytes <= 3000


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.5])
def test_the_mask_is_uniform_over_all_coordinates(ratio: float) -> None:
    """Chi-square over 64 regions: a mask from the first coordinates would fill one of them."""
    size, regions = 64 * 20_000, 64
    mask, _, _ = SparseSketch(SHAPES, 3, ratio, 16).coordinates(torch.arange(size))
    counts = mask.view(regions, -1).sum(1).double()
    expected = size / regions * ratio
    chi_square = float(((counts - expected) ** 2).sum() / (expected * (1 - ratio)))
    # Mean 64, standard deviation sqrt(128): between -4 and +5 standard deviations.
    assert 64 - 4 * 11.4 < chi_square < 64 + 5 * 11.4


def test_buckets_and_signs_are_uniform_and_independent_of_the_mask() -> None:
    mask, bucket, sign = SparseSketch(SHAPES, 3, 0.15, 16).coordinates(torch.arange(200_000))
    for chosen in (torch.ones_like(mask), mask):
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
def test_index_arithmetic_is_correct_beyond_32_bits(place: int, seed: int) -> None:
    places = torch.arange(place, place + 5, dtype=torch.int64)
    for key in hash_keys(seed):
        actual = [value & MASK for value in mix64(places, key).tolist()]
        assert actual == [python_mix64(p, key) for p in range(place, place + 5)]
    mask, bucket, sign = SparseSketch(SHAPES, seed, 0.3, 8191).coordinates(places)
    for n, expected in enumerate(python_coordinate(p, seed, 0.3, 8191) for p in places.tolist()):
        actual = (bool(mask[n]), int(bucket[n]), float(sign[n]))
        assert actual == (expected[0], expected[1], pytest.approx(expected[2], rel=1e-6))


@pytest.mark.parametrize("listed", [False, True])
def test_places_of_large_models_continue_beyond_32_bits(listed: bool) -> None:
    """Offsets past 2^33, and rows of one parameter past 2^32, tile by tile."""
    shapes = {"a": (2**33, 1), "b": (2**31, 5)}
    first_row = 2**31 - 10
    gradient = torch.arange(1.0, 51.0).view(1, 10, 5)
    actual, expected = torch.zeros(1, 97), torch.zeros(97)
    for start in (0, 3, 6):
        stop = {0: 3, 3: 6, 6: 10}[start]
        rows: slice | torch.Tensor = slice(first_row + start, first_row + stop)
        rows = torch.arange(rows.start, rows.stop) if listed else rows
        SparseSketch(shapes, 11, 1.0, 97).project("b", rows, gradient[:, start:stop], actual)
    for n, value in enumerate(gradient.flatten().tolist()):
        _, bucket, sign = python_coordinate(2**33 + first_row * 5 + n, 11, 1.0, 97)
        expected[bucket] += sign * value
    assert torch.allclose(actual[0], expected, atol=1e-4)


@pytest.mark.parametrize("entries", [module.rademacher_entries, module.gaussian_entries])
def test_entries_of_dense_projections_are_standard_and_independent(entries: Callable) -> None:
    """Near and far places alike: what lies beyond 2^32 must not repeat what lies before."""
    places = torch.cat([torch.arange(300), 2**32 + torch.arange(300)])
    matrix = entries(places, 500, 3).double()
    assert matrix.shape == (600, 500)
    assert abs(float(matrix.mean())) < 5 / 300_000**0.5
    assert float(matrix.square().mean()) == pytest.approx(1, abs=0.02)
    rows = torch.corrcoef(matrix) - torch.eye(600)
    assert float(rows.abs().max()) < 6 / 500**0.5
    columns = torch.corrcoef(matrix.T) - torch.eye(500)
    assert float(columns.abs().max()) < 6 / 600**0.5


def test_gaussians_have_normal_tails() -> None:
    values = gaussians(torch.arange(200_000), 12345)
    for limit, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        actual = float((values.abs() > limit).double().mean())
        assert abs(actual - share) < 5 * math.sqrt(share / 200_000)
