"""The consumer: prompts stay apart whatever the batches, and norms are the gradients'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cropi.gradients.contributions import MatrixContribution, Segments
from cropi.sketches import (
    AdaptiveSketch,
    KroneckerSketch,
    SketchBuffer,
    SketchConsumer,
    SparseSketch,
    WindowedSketch,
)
from support.sketching import SHAPES, assert_close, flat, project, vectors

CPU = torch.device("cpu")


def stream(
    consumer: SketchConsumer, gradients: dict[str, Tensor], batches: list[list[int]]
) -> None:
    for batch in batches:
        consumer.begin(torch.tensor(batch))
        for name, gradient in gradients.items():
            middle = gradient.shape[1] // 2
            for rows in (slice(0, middle), torch.arange(middle, gradient.shape[1])):
                consumer.consume(name, rows, gradient[batch][:, rows])
        consumer.finish()


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3]], [[2, 0], [3, 1]], [[3], [2], [1], [0]]])
def test_sketches_and_norms_do_not_depend_on_the_batches(batches: list[list[int]]) -> None:
    gradients, sketch = vectors(4), SparseSketch(SHAPES, 2, 0.5, 32)
    buffer = SketchBuffer(4, sketch.dim)
    stream(SketchConsumer(sketch, buffer, CPU), gradients, batches)
    assert_close(buffer.sketches.double(), project(sketch, gradients))
    torch.testing.assert_close(buffer.norms, flat(gradients).norm(dim=1), rtol=1e-6, atol=0)


def test_a_fitted_sketch_is_fitted_to_wide_sketches() -> None:
    gradients = vectors(12)
    sketch = AdaptiveSketch(WindowedSketch(SHAPES, 0, 1024), 16, 0)
    wide = SketchBuffer(12, sketch.width)
    stream(SketchConsumer(sketch, wide, CPU, wide=True), gradients, [[*range(12)]])
    sketch.fit(wide.sketches)
    buffer = SketchBuffer(12, sketch.dim)
    stream(SketchConsumer(sketch, buffer, CPU), gradients, [[4, 2, 0], [1, 3, *range(5, 12)]])
    assert_close(buffer.sketches, sketch.compress(wide.sketches))


def test_without_dense_rows_the_norm_is_that_of_the_sketch() -> None:
    sketch = KroneckerSketch({"w": (40, 50), "v": (7,)}, 0, 4096, 16)
    buffer = SketchBuffer(2, sketch.dim)
    consumer = SketchConsumer(sketch, buffer, CPU)
    torch.manual_seed(0)
    factors = MatrixContribution(torch.randn(6, 40), torch.randn(6, 50), Segments([0, 2], [2, 6]))
    consumer.begin(torch.tensor([1, 0]))
    assert consumer.takes_factors("w")
    assert not consumer.takes_factors("v")
    consumer.consume_factors("w", [factors])
    consumer.consume("v", slice(0, 1), torch.randn(2, 1, 7))
    consumer.finish()
    torch.testing.assert_close(
        buffer.norms, buffer.sketches.double().norm(dim=1), rtol=1e-6, atol=0
    )
