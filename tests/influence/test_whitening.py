"""Whitened influence against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

from cropi.influence.whitening import whitened


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def gradients(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients that share a direction, and two targets that have some of it."""
    draw = np.random.default_rng(seed)
    shared = 2 * draw.normal(size=width)
    return (
        draw.normal(size=(count, width)) + shared,
        unit(draw.normal(size=(2, width)) + 0.3 * shared),
    )


@pytest.mark.parametrize(("count", "width"), [(40, 12), (12, 40)])
@pytest.mark.parametrize("ridge", [0.003, 0.3])
def test_it_is_the_cosine_in_the_metric_of_the_other_prompts(
    count: int, width: int, ridge: float
) -> None:
    """For each prompt the matrix is inverted anew, without it."""
    rows, targets = gradients(count, width, 0)
    units = unit(rows)
    expected = np.empty((count, 2))
    for index in range(count):
        others = np.delete(units, index, axis=0)
        second = others.T @ others / count
        inverse = np.linalg.inv(second + ridge * np.eye(width))
        # k_p less what a ridge regression of the target on the other gradients predicts of it.
        expected[index] = ridge * units[index] @ inverse @ targets.T
    result = whitened(units @ targets.T, rows * 7, np.arange(count), ridge)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_prompts_outside_the_sample_use_the_whole_of_it() -> None:
    rows, targets = gradients(30, 16, 1)
    units = unit(rows)
    sample = np.arange(0, 30, 2)
    second = units[sample].T @ units[sample] / len(sample)
    inverse = np.linalg.inv(second + 0.01 * np.eye(16))
    result = whitened(units @ targets.T, rows, sample, 0.01)
    outside = np.arange(1, 30, 2)
    expected = 0.01 * units[outside] @ inverse @ targets.T
    np.testing.assert_allclose(result[outside], expected, atol=2e-5)


def test_what_all_share_counts_little_and_what_one_has_alone_stays() -> None:
    draw = np.random.default_rng(2)
    shared, distinct = np.eye(200)[0], np.eye(200)[1]
    rows = unit(draw.normal(size=(300, 200))) * 0.3 + shared
    rows[0] += distinct
    target = unit(shared + distinct)
    plain = unit(rows) @ target
    result = whitened(plain[:, None], rows, np.arange(300))[:, 0]
    assert np.abs(result[1:]).max() < 0.2 < 0.6 < plain[1:].min()
    assert result[0] > 0.3


def test_a_gradient_without_length_keeps_its_cosine() -> None:
    rows, targets = gradients(20, 8, 3)
    rows[4] = 0
    cosines = unit(rows + 1e-12) @ targets.T
    cosines[4] = 0
    result = whitened(cosines, rows, np.delete(np.arange(20), 4))
    assert np.isfinite(result).all()
    assert result[4].tolist() == [0, 0]
