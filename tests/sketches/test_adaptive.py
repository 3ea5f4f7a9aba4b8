"""The adaptive sketch: nearly exact on what it learnt, unbiased elsewhere, saved and loaded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cropi.errors import InputError
from cropi.sketches import AdaptiveSketch, FittedSketch, WindowedSketch

SHAPES = {"w": (64, 64)}
WIDTH = 2048


def gradients(count: int, rank: int = 10, noise: float = 0.05, seed: int = 0) -> Tensor:
    """Prompts near one subspace of `rank` dimensions, the same for every seed, [n, 64, 64]."""
    basis = torch.randn(rank, 4096, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count, rank, generator=generator)
    rest = torch.randn(count, 4096, generator=generator)
    return (mixing @ basis / rank**0.5 + noise * rest).view(count, 64, 64)


def wide(sketch: AdaptiveSketch, values_PRI: Tensor) -> Tensor:
    out = torch.zeros(len(values_PRI), sketch.width)
    sketch.project("w", slice(0, 64), values_PRI, out)
    return out


def learnt_sketch(seed: int = 0, dim: int = 128, directions: int = 32) -> AdaptiveSketch:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, seed, WIDTH), dim, seed, directions)
    sketch.learn(wide(sketch, gradients(40)))
    return sketch


def test_inner_products_of_what_was_learnt_are_those_of_the_wide_sketch() -> None:
    sketch = learnt_sketch()
    seen = wide(sketch, gradients(40, noise=0.0, seed=7))
    found = sketch.compress(seen)
    exact = seen @ seen.T
    assert float((found @ found.T - exact).norm() / exact.norm()) < 0.01


def test_inner_products_are_unbiased_whatever_was_learnt() -> None:
    """Over hashes of the rest, with the learnt directions fixed."""
    basis = learnt_sketch()
    strangers = wide(basis, torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(5)))
    content, found = basis.saved(), []
    for seed in range(200):
        sketch = AdaptiveSketch(basis.base, 128, 0, 32)
        sketch.load(content)
        sketch.seed = seed
        sketch._take(sketch._basis_MW)
        out = sketch.compress(strangers).double()
        found.append(out @ out.T)
    products = torch.stack(found)
    error = products.std(0) / math.sqrt(200)
    true = strangers.double() @ strangers.double().T
    # Directions are kept in fp16, which is off by less than a thousandth.
    assert ((products.mean(0) - true).abs() < 4 * error + 1e-3 * true.diagonal().mean()).all()


def test_it_errs_less_than_hashing_to_as_many_dimensions() -> None:
    values = gradients(60, seed=3)
    flat = values.flatten(1).double()
    exact = flat @ flat.T
    sketch = learnt_sketch()
    plain = WindowedSketch(SHAPES, 0, 128)
    hashed = torch.zeros(60, 128)
    plain.project("w", slice(0, 64), values, hashed)
    compressed = sketch.compress(wide(sketch, values))
    errors = [float((s.double() @ s.double().T - exact).norm()) for s in (compressed, hashed)]
    assert errors[0] < 0.5 * errors[1]


def test_the_basis_is_orthonormal_and_no_larger_than_asked_for() -> None:
    for directions, expected in ((32, 32), (5, 5), (500, 40)):
        basis = learnt_sketch(directions=directions)._basis_MW
        assert basis is not None
        assert len(basis) == expected
        assert float((basis @ basis.T - torch.eye(expected)).abs().max()) < 1e-3
    assert len(learnt_sketch(dim=20)._basis_MW) == 10


def test_fewer_directions_are_learnt_where_there_are_no_more() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 64, 0)
    few = wide(sketch, gradients(3, noise=0.0))
    sketch.learn(torch.cat([few, few, torch.zeros(2, WIDTH)]))
    assert len(sketch._basis_MW) == 3
    assert sketch.compress(few).shape == (3, 64)


def test_scale_of_single_prompts_teaches_nothing() -> None:
    one, other = (AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 64, 0, 4) for _ in range(2))
    sample = wide(one, gradients(40))
    one.learn(sample)
    other.learn(sample * torch.logspace(-3, 3, 40).unsqueeze(1))
    shared = torch.linalg.matrix_norm(one._basis_MW @ other._basis_MW.T)
    assert float(shared) == pytest.approx(2.0, abs=0.01)


def test_loading_gives_the_same_map_identity_and_bytes() -> None:
    sketch = learnt_sketch()
    other = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32)
    assert not other.learnt
    other.load(sketch.saved())
    assert other.learnt
    values = wide(sketch, gradients(5, seed=8))
    assert torch.equal(other.compress(values), sketch.compress(values))
    assert other.identity == sketch.identity
    assert other.saved() == sketch.saved()


def test_what_was_learnt_is_in_the_identity() -> None:
    sketch, other = learnt_sketch(), learnt_sketch()
    assert sketch.identity == other.identity
    other.learn(wide(other, gradients(40, seed=1)))
    assert other.identity != sketch.identity
    fresh = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32)
    assert fresh.identity != sketch.identity
    assert set(fresh.identity) == set(sketch.identity)


def test_what_another_sketch_learnt_is_refused() -> None:
    content = learnt_sketch(seed=1).saved()
    with pytest.raises(InputError, match=r"seed '1' instead of '0'"):
        AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32).load(content)


@pytest.mark.parametrize("cut", [0, 10, 1000])
def test_a_damaged_file_is_named_as_such(cut: int) -> None:
    sketch = learnt_sketch()
    with pytest.raises(InputError, match="damaged"):
        sketch.load(sketch.saved()[:cut])


def test_one_infinite_gradient_does_not_spoil_the_rest() -> None:
    sketch, other = learnt_sketch(), learnt_sketch()
    spoilt = torch.full((2, WIDTH), torch.inf)
    spoilt[1] = torch.nan
    other.learn(torch.cat([wide(other, gradients(40)), spoilt]))
    assert other.identity == sketch.identity


def test_gradients_of_zero_teach_nothing() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0)
    with pytest.raises(InputError, match="4 prompts with gradients of zero"):
        sketch.learn(torch.zeros(4, WIDTH))


def test_it_says_that_it_learns() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0)
    assert isinstance(sketch, FittedSketch)
    assert not isinstance(sketch.base, FittedSketch)
