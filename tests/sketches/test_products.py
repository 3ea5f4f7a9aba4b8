"""Factored sketches: factors give what dense rows give, and no dense gradient is needed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cropi.gradients.contributions import (
    Contribution,
    DenseContribution,
    MatrixContribution,
    RowsContribution,
    Segments,
    Workspace,
)
from cropi.sketches import FactorisedSketch, KroneckerSketch, Sketch
from cropi.sketches import factorised as module
from support.sketching import assert_close, project

SEGMENTS = Segments([0, 5, 6], [5, 6, 12])
SHAPES = {"tied": (50, 24), "linear": (16, 24), "bias": (40,)}
MAKE = {
    "factorised": lambda: FactorisedSketch(SHAPES, 1, 0.4, 256),
    "kronecker": lambda: KroneckerSketch(SHAPES, 1, 256, 18),
}


def contributions() -> dict[str, list[Contribution]]:
    torch.manual_seed(0)
    return {
        "tied": [
            RowsContribution(torch.randint(0, 50, (12,)), torch.randn(12, 24), SEGMENTS),
            MatrixContribution(torch.randn(12, 50), torch.randn(12, 24), SEGMENTS),
        ],
        "linear": [MatrixContribution(torch.randn(12, 16), torch.randn(12, 24), SEGMENTS)],
        "bias": [DenseContribution.of_vectors(torch.randn(3, 40))],
    }


def dense(actual: dict[str, list[Contribution]]) -> dict[str, Tensor]:
    gradients = {}
    for name, parts in actual.items():
        height = SHAPES[name][0] if len(SHAPES[name]) > 1 else 1
        tile = torch.empty(3, height, SHAPES[name][-1])
        for n, part in enumerate(parts):
            part.add_rows(tile, slice(0, height), n == 0, Workspace(tile.device))
        gradients[name] = tile
    return gradients


def project_factors(sketch: Sketch, actual: dict[str, list[Contribution]]) -> Tensor:
    out = torch.zeros(3, sketch.width)
    for name, parts in actual.items():
        if sketch.takes_factors(name):
            sketch.project_factors(name, parts, out)
        else:
            sketch.project(name, slice(0, 1), dense({name: parts})[name], out)
    return out.double()


@pytest.mark.parametrize("kind", MAKE)
def test_sketches_of_factors_equal_those_of_dense_rows(kind: str) -> None:
    actual = contributions()
    expected = project(MAKE[kind](), dense(actual))
    assert_close(project_factors(MAKE[kind](), actual), expected)


def test_a_block_made_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    actual = contributions()
    expected = project_factors(MAKE["factorised"](), actual)
    monkeypatch.setitem(module.BLOCK_BYTES, "cpu", 100)
    assert_close(project_factors(MAKE["factorised"](), actual), expected)


@pytest.mark.parametrize("ratio", [0.01, 0.15, 1.0])
def test_a_factorised_mask_keeps_its_share(ratio: float) -> None:
    shapes = {"w": (400, 300), "v": (1000,), "tiny": (2, 2)}
    sketch = FactorisedSketch(shapes, 0, ratio, 64)
    cpu = torch.device("cpu")
    for name, size in (("w", 120_000), ("v", 1000)):
        rows, columns = sketch.kept_indices(name, cpu)
        assert len(rows) * len(columns) == pytest.approx(ratio * size, rel=0.03)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert columns.tolist() == sorted(set(columns.tolist()))
    assert all(len(indices) >= 1 for indices in sketch.kept_indices("tiny", cpu))


def test_every_row_and_column_is_as_likely_to_be_kept() -> None:
    counts = torch.zeros(40)
    for seed in range(400):
        _, columns = FactorisedSketch({"w": (9, 40)}, seed, 0.25, 16).kept_indices(
            "w", torch.device("cpu")
        )
        counts[columns] += 1
    assert float((counts / 400 - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 400)


def test_short_axes_and_vectors_are_not_projected_by_kronecker_maps() -> None:
    """With every side short enough only hashing is left, here into more buckets than needed."""
    shapes = {"w": (8, 8), "v": (30,)}
    sketch = KroneckerSketch(shapes, 0, 1 << 16, 8)
    gradients = {"w": torch.randn(1, 8, 8), "v": torch.randn(1, 1, 30)}
    true = sum(float(g.double().square().sum()) for g in gradients.values())
    assert float(project(sketch, gradients).square().sum()) == pytest.approx(true, rel=1e-2)


def test_half_precision_factors_are_projected_by_exact_signs() -> None:
    sketch = KroneckerSketch({"w": (200, 300)}, 0, 64, 16)
    left, right = sketch.maps("w", torch.device("cpu"))
    for values in (left, right):
        assert set(values.unique().tolist()) == {-1.0, 1.0}
        assert torch.equal(values.bfloat16().float(), values)
