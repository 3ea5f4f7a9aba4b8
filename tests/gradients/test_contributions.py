"""Contributions: rows, projections and blocks made from factors equal those of dense gradients."""

from __future__ import annotations

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
    matrix_shape,
    touched_rows,
)

ROWS, WIDTH, PROMPTS = 11, 6, 3
EVEN = Segments([0, 4, 8], [4, 8, 12])
UNEVEN = Segments([0, 5, 6], [5, 6, 12])


def made(kind: str, segments: Segments, dtype: torch.dtype = torch.float32) -> Contribution:
    torch.manual_seed(0)
    if kind == "vector":
        return DenseContribution.of_vectors(torch.randn(PROMPTS, WIDTH))
    if kind == "rows":
        return RowsContribution(
            torch.randint(0, ROWS, (12,)), torch.randn(12, WIDTH).to(dtype), segments
        )
    return MatrixContribution(
        torch.randn(12, ROWS).to(dtype), torch.randn(12, WIDTH).to(dtype), segments
    )


def dense(contribution: Contribution) -> Tensor:
    """The gradients [P, rows, I], written down token by token."""
    if isinstance(contribution, DenseContribution):
        return contribution.values_POI
    actual = torch.zeros(PROMPTS, ROWS, WIDTH)
    segments = contribution.segments
    for p, (start, stop) in enumerate(zip(segments.starts, segments.stops, strict=True)):
        for t in range(start, stop):
            if isinstance(contribution, RowsContribution):
                actual[p, contribution.ids_T[t]] += contribution.values_TI[t].float()
            else:
                assert isinstance(contribution, MatrixContribution)
                left, right = contribution.left_TO[t].float(), contribution.right_TI[t].float()
                actual[p] += torch.outer(left, right)
    return actual


CASES = [(k, s) for k in ("matrix", "rows", "vector") for s in (EVEN, UNEVEN)]


@pytest.mark.parametrize(("kind", "segments"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_added_tile_by_tile_are_the_dense_gradient(
    kind: str, segments: Segments, dtype: torch.dtype
) -> None:
    contribution = made(kind, segments, dtype)
    expected = dense(contribution)
    work = Workspace(torch.device("cpu"))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for step in (1, 4, 100):
        for start in range(0, expected.shape[1], step):
            rows = slice(start, min(start + step, expected.shape[1]))
            tile = torch.full_like(expected[:, rows], float("nan"))
            contribution.add_rows(tile, rows, True, work)
            assert torch.allclose(tile, expected[:, rows], rtol=tolerance, atol=tolerance)
            contribution.add_rows(tile, rows, False, work)
            assert torch.allclose(tile, 2 * expected[:, rows], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "segments"), CASES)
def test_a_projection_from_factors_is_that_of_the_dense_gradient(
    kind: str, segments: Segments
) -> None:
    contribution = made(kind, segments)
    expected = dense(contribution)
    left, right = torch.randn(expected.shape[1], 4), torch.randn(WIDTH, 5)
    actual = contribution.project(left, right)
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, left.T @ expected @ right, atol=1e-5)


@pytest.mark.parametrize(("kind", "segments"), CASES)
def test_a_block_from_factors_is_that_of_the_dense_gradient(kind: str, segments: Segments) -> None:
    contribution = made(kind, segments)
    expected = dense(contribution)
    rows = torch.tensor([7, 0, 3]) if expected.shape[1] > 1 else torch.tensor([0])
    columns = torch.tensor([5, 1])
    actual = contribution.select(rows, columns)
    assert torch.allclose(actual, expected[:, rows][:, :, columns], atol=1e-6)


def test_only_look_ups_leave_rows_untouched() -> None:
    rows = made("rows", EVEN)
    assert isinstance(rows, RowsContribution)
    assert touched_rows([rows, made("matrix", EVEN)]) is None
    touched = touched_rows([rows, rows])
    assert touched is not None
    assert touched.tolist() == sorted(set(rows.ids_T.tolist()))
    work = Workspace(torch.device("cpu"))
    tile = torch.empty(PROMPTS, len(touched), WIDTH)
    rows.within(touched).add_rows(tile, slice(0, len(touched)), True, work)
    assert torch.allclose(tile, dense(rows)[:, touched])


def test_parameters_of_any_shape_are_matrices() -> None:
    shapes = [(), (7,), (3, 5), (3, 5, 2)]
    assert [matrix_shape(s) for s in shapes] == [(1, 1), (1, 7), (3, 5), (3, 10)]
