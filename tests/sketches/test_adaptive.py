"""The adaptive sketch: nearly exact in its fitted subspace, unbiased elsewhere; its state."""

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


def fitted_sketch(seed: int = 0, dim: int = 128, directions: int = 32) -> AdaptiveSketch:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, seed, WIDTH), dim, seed, directions)
    sketch.fit(wide(sketch, gradients(40)))
    return sketch


def test_inner_products_in_the_fitted_subspace_are_those_of_the_wide_sketch() -> None:
    sketch = fitted_sketch()
    seen = wide(sketch, gradients(40, noise=0.0, seed=7))
    actual = sketch.compress(seen)
    exact = seen @ seen.T
    assert float((actual @ actual.T - exact).norm() / exact.norm()) < 0.01


def test_inner_products_are_unbiased_given_any_fitted_basis() -> None:
    """Over hashes of the rest, with the fitted directions fixed."""
    basis = fitted_sketch()
    unseen = wide(basis, torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(5)))
    content, actual = basis.state_bytes(), []
    for seed in range(200):
        sketch = AdaptiveSketch(basis.base, 128, 0, 32)
        sketch.load_state(content)
        sketch.seed = seed
        sketch._set_basis(sketch._basis_MW)
        out = sketch.compress(unseen).double()
        actual.append(out @ out.T)
    products = torch.stack(actual)
    error = products.std(0) / math.sqrt(200)
    true = unseen.double() @ unseen.double().T
    # Directions are stored in fp16, which is off by less than a thousandth.
    assert ((products.mean(0) - true).abs() < 4 * error + 1e-3 * true.diagonal().mean()).all()


def test_its_error_is_below_that_of_hashing_to_equal_dimensions() -> None:
    values = gradients(60, seed=3)
    flat = values.flatten(1).double()
    exact = flat @ flat.T
    sketch = fitted_sketch()
    plain = WindowedSketch(SHAPES, 0, 128)
    hashed = torch.zeros(60, 128)
    plain.project("w", slice(0, 64), values, hashed)
    compressed = sketch.compress(wide(sketch, values))
    errors = [float((s.double() @ s.double().T - exact).norm()) for s in (compressed, hashed)]
    assert errors[0] < 0.5 * errors[1]


def test_the_basis_is_orthonormal_and_not_larger_than_requested() -> None:
    for directions, expected in ((32, 32), (5, 5), (500, 40)):
        basis = fitted_sketch(directions=directions)._basis_MW
        assert basis is not None
        assert len(basis) == expected
        assert float((basis @ basis.T - torch.eye(expected)).abs().max()) < 1e-3
    assert len(fitted_sketch(dim=20)._basis_MW) == 10


def test_the_basis_is_not_larger_than_the_rank_of_the_sample() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 64, 0)
    few = wide(sketch, gradients(3, noise=0.0))
    sketch.fit(torch.cat([few, few, torch.zeros(2, WIDTH)]))
    assert len(sketch._basis_MW) == 3
    assert sketch.compress(few).shape == (3, 64)


def test_the_scale_of_single_prompts_does_not_affect_the_basis() -> None:
    one, other = (AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 64, 0, 4) for _ in range(2))
    sample = wide(one, gradients(40))
    one.fit(sample)
    other.fit(sample * torch.logspace(-3, 3, 40).unsqueeze(1))
    shared = torch.linalg.matrix_norm(one._basis_MW @ other._basis_MW.T)
    assert float(shared) == pytest.approx(2.0, abs=0.01)


def test_loading_gives_the_same_map_identity_and_bytes() -> None:
    sketch = fitted_sketch()
    other = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32)
    assert not other.is_fitted
    other.load_state(sketch.state_bytes())
    assert other.is_fitted
    values = wide(sketch, gradients(5, seed=8))
    assert torch.equal(other.compress(values), sketch.compress(values))
    assert other.identity == sketch.identity
    assert other.state_bytes() == sketch.state_bytes()


def test_the_fitted_basis_is_part_of_the_identity() -> None:
    sketch, other = fitted_sketch(), fitted_sketch()
    assert sketch.identity == other.identity
    other.fit(wide(other, gradients(40, seed=1)))
    assert other.identity != sketch.identity
    fresh = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32)
    assert fresh.identity != sketch.identity
    assert set(fresh.identity) == set(sketch.identity)


def test_the_state_of_another_sketch_is_refused() -> None:
    content = fitted_sketch(seed=1).state_bytes()
    with pytest.raises(InputError, match=r"seed '1' instead of '0'"):
        AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0, 32).load_state(content)


@pytest.mark.parametrize("cut", [0, 10, 1000])
def test_a_damaged_file_is_named_as_such(cut: int) -> None:
    sketch = fitted_sketch()
    with pytest.raises(InputError, match="damaged"):
        sketch.load_state(sketch.state_bytes()[:cut])


def test_gradients_that_are_not_finite_are_left_out_of_the_fit() -> None:
    sketch, other = fitted_sketch(), fitted_sketch()
    not_finite = torch.full((2, WIDTH), torch.inf)
    not_finite[1] = torch.nan
    other.fit(torch.cat([wide(other, gradients(40)), not_finite]))
    assert other.identity == sketch.identity


def test_a_sketch_cannot_be_fitted_to_zero_gradients() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0)
    with pytest.raises(InputError, match="all 4 sampled gradients are zero"):
        sketch.fit(torch.zeros(4, WIDTH))


def test_it_is_a_fitted_sketch_and_its_base_is_not() -> None:
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, WIDTH), 128, 0)
    assert isinstance(sketch, FittedSketch)
    assert not isinstance(sketch.base, FittedSketch)
