"""Prompts whose influence is within noise are left out, however wide noise is."""

from __future__ import annotations

import numpy as np
import pytest

from cropi.estimation.noise import exceeds_noise, noise_scale, with_pooled_errors
from cropi.schema import InfluenceEstimate
from cropi.selection import fuse


def scores(**cosines: np.ndarray) -> InfluenceEstimate:
    count = len(next(iter(cosines.values())))
    ids = [f"p{n:04d}" for n in range(count)]
    return InfluenceEstimate.from_means(ids, cosines)


def noise(count: int, width: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, width, count)


@pytest.mark.parametrize("width", [0.01, 0.04, 0.2])
def test_the_scale_of_noise_is_estimated_from_a_pool_of_noise(width: float) -> None:
    assert noise_scale(noise(4000, width)) == pytest.approx(width, rel=0.06)


def test_prompts_that_help_or_oppose_hardly_change_the_noise_scale() -> None:
    """Wrongly graded prompts of the target oppose it; they are not noise."""
    mixed = np.concatenate([noise(1500, 0.04), np.full(120, 0.4), np.full(60, -0.35)])
    assert noise_scale(mixed) == pytest.approx(0.04, rel=0.15)


def test_a_pool_that_all_helps_has_no_noise_and_loses_nothing() -> None:
    selection = fuse(scores(v=np.linspace(0.01, 0.5, 200)), 50, noise_floor=3.0)
    assert len(selection.prompt_ids) == 50
    assert selection.notes == []


def test_of_a_pool_with_few_helpful_prompts_those_and_few_others_are_taken() -> None:
    cosine = noise(1000, 0.03)
    cosine[:40] = 0.3
    table = scores(v=cosine)
    whole, filtered = fuse(table, 100), fuse(table, 100, noise_floor=3.0)
    assert len(whole.prompt_ids) == 100
    assert set(filtered.prompt_ids) >= {f"p{n:04d}" for n in range(40)}
    assert 40 <= len(filtered.prompt_ids) <= 45
    assert filtered.notes == [
        f"{100 - len(filtered.prompt_ids)} of 100 left out: their influence is within noise"
    ]
    # Their order and scores are those of the whole selection.
    assert [i for i in whole.prompt_ids if i in set(filtered.prompt_ids)] == filtered.prompt_ids


def test_one_target_above_noise_is_enough() -> None:
    near, far = noise(500, 0.03, 1), noise(500, 0.03, 2)
    far[7] = 0.5
    assert exceeds_noise(with_pooled_errors(scores(near=near, far=far)), 3.0)[7]


def test_a_fifth_is_taken_even_where_everything_is_noise() -> None:
    table = scores(v=noise(1000, 0.03))
    selection = fuse(table, 100, noise_floor=50.0)
    assert selection.prompt_ids == fuse(table, 100).prompt_ids[:20]
    assert len(fuse(table, 1, noise_floor=50.0).prompt_ids) == 1
