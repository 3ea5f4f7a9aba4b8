"""Windowed hashing: its error bound, its index arithmetic past 2^32, its windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cropi.sketches import WindowedSketch
from cropi.sketches import windowed as module
from cropi.sketches.counter_rng import keys
from support.sketching import SHAPES, assert_close, flat, project, python_mix64, vectors


@pytest.mark.parametrize("dim", [64, 512])
def test_the_error_of_inner_products_meets_the_bound_of_signed_hashing(dim: int) -> None:
    """The bound holds for structured gradients too: here one column is ten times as heavy."""
    gradients = vectors(2, seed=1)
    gradients["b.weight"][:, :, 7] *= 10
    a, b = flat(gradients)
    bound = (a @ a) * (b @ b) + (a @ b) ** 2 - 2 * (a * a) @ (b * b)
    errors = []
    for seed in range(300):
        out = project(WindowedSketch(SHAPES, seed, dim), gradients)
        errors.append(float(out[0] @ out[1] - a @ b))
    fewest_starts = dim - dim // module.PIECES + 1
    assert np.mean(np.square(errors)) < 1.3 * float(bound) / fewest_starts


@pytest.mark.parametrize("height", [3, 2**31, 2**33])
@pytest.mark.parametrize("width", [1, 64, 70])
def test_index_arithmetic_is_correct_beyond_32_bits(height: int, width: int) -> None:
    """Signs and starts of the last rows of a model of any size, by Python's own integers."""
    shapes = {"a": (height, width), "b": (2, 130)}
    sketch = WindowedSketch(shapes, 11, 97)
    words, pieces = -(-width // 64), -(-width // 6)
    length = -(-width // pieces)
    rows = torch.arange(height - 2, height)
    (sign_key,), (start_key,) = keys("windowed.signs", 11, 1), keys("windowed.starts", 11, 1)
    for row, signs, starts in zip(
        rows.tolist(), sketch.signs("a", rows), sketch.starts("a", rows), strict=True
    ):
        bits = [python_mix64(row * words + c // 64, sign_key) >> c % 64 & 1 for c in range(width)]
        assert signs.tolist() == [1.0 if bit else -1.0 for bit in bits]
        mixed = [python_mix64(row * pieces + k, start_key) for k in range(pieces)]
        assert starts.tolist() == [(m >> 2) % (97 - length + 1) for m in mixed]
    first_of_b = python_mix64(height * words, sign_key) & 1
    assert sketch.signs("b", torch.tensor([0]))[0, 0] == (1.0 if first_of_b else -1.0)


@pytest.mark.parametrize("length", [10, 20_000])
def test_overlapping_windows_lose_nothing(length: int) -> None:
    """`index_add_` into overlapping windows is what the fast path rests on, with threads too."""
    size, generator = length * 4, torch.Generator().manual_seed(0)
    starts = torch.randint(0, size - length + 1, (50,), generator=generator)
    pieces = torch.randn(3, 50, length, generator=generator)
    out, threads = torch.zeros(3, size), torch.get_num_threads()
    torch.set_num_threads(2)
    module.add_windows(out, starts, pieces)
    torch.set_num_threads(threads)
    expected = torch.zeros(3, size, dtype=torch.float64)
    for start, piece in zip(starts.tolist(), pieces.unbind(1), strict=True):
        expected[:, start : start + length] += piece
    assert_close(out.double(), expected)


@pytest.mark.parametrize("cache", [0, 4000, 1 << 20])
def test_buffers_and_the_cache_change_nothing(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = vectors(3)
    expected = project(WindowedSketch(SHAPES, 5, 128), gradients)
    monkeypatch.setattr(module, "SIGNED_CHUNK", 170)
    monkeypatch.setattr(module, "DRAWN_CHUNK", 150)
    monkeypatch.setattr(module, "CACHE_BYTES", cache)
    pieces = WindowedSketch(SHAPES, 5, 128)
    for rows, listed in ((4, True), (30, False), (7, False), (9, True)):
        assert_close(project(pieces, gradients, rows, listed), expected)
    assert pieces._cached_bytes <= cache


def test_signs_and_starts_are_uniform() -> None:
    sketch = WindowedSketch({"w": (20_000, 64)}, 3, 64)
    rows = torch.arange(20_000)
    signs, starts = sketch.signs("w", rows), sketch.starts("w", rows)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert float(signs.mean(0).abs().max()) < 5 / 20_000**0.5
    correlation = signs.T @ signs / 20_000 - torch.eye(64)
    assert float(correlation.abs().max()) < 6 / 20_000**0.5
    counts = torch.bincount(starts.flatten(), minlength=61).double()
    expected = starts.numel() / 61
    assert float(((counts - expected) ** 2).sum() / expected) < 60 + 5 * 120**0.5
