"""A pool scored in portions has the scores of the whole pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import growing_pool, score
from cropi.schema import NOT_SAMPLED, RolloutGroup
from support.tiny_models import mixed_groups, tiny_model

POOL = [replace(g, prompt_id=f"p{n}") for n, g in enumerate(mixed_groups(14, seed=1))]
TARGETS = {"algebra": mixed_groups(5, seed=2), "words": mixed_groups(3, seed=3)}
ORDER = [9, 2, 13, 0, 5, 11, 1, 4, 12, 3, 8, 10, 7, 6]
CASES = [
    {"metric": "cosine"},
    {"metric": "whitened"},
    {"metric": "whitened", "sketch": {"name": "sparse", "dim": 256}},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_portions_in_any_order_have_the_scores_of_the_whole_pool(case: dict) -> None:
    model, settings = tiny_model("qwen2-tied"), InfluenceConfig.model_validate(case)
    whole = score(model, POOL, TARGETS, settings, constant_length=8)
    growing = growing_pool(model, TARGETS, settings, constant_length=8)
    for begin, end in ((0, 3), (3, 6), (6, 14)):
        growing.add([POOL[index] for index in ORDER[begin:end]])
    parts = growing.influence(POOL)
    assert parts.estimate.prompt_ids == whole.estimate.prompt_ids
    assert parts.estimate.status == whole.estimate.status
    for name in TARGETS:
        np.testing.assert_allclose(
            parts.estimate.mean[name], whole.estimate.mean[name], atol=2e-6, equal_nan=True
        )
    np.testing.assert_allclose(parts.estimate.norms, whole.estimate.norms, rtol=1e-5)
    assert parts.tokens == whole.tokens


def test_prompts_that_were_not_sampled_have_no_score_and_say_so() -> None:
    unsampled = RolloutGroup("later", POOL[0].prompt_ids, [])
    growing = growing_pool(tiny_model("qwen2-tied"), TARGETS, constant_length=8)
    growing.add(POOL[:4])
    estimate = growing.influence([unsampled, *POOL[:4]]).estimate
    assert estimate.status[0] == NOT_SAMPLED
    assert np.isnan(estimate.mean["algebra"][0])
    assert np.isfinite(estimate.mean["algebra"][1:]).any()
    assert estimate.group_size[0] == 0


def test_a_portion_without_a_gradient_is_refused_and_loses_nothing() -> None:
    growing = growing_pool(tiny_model("qwen2-tied"), TARGETS, constant_length=8)
    growing.add(POOL[:4])
    before = growing.influence(POOL[:4]).estimate
    solved = [replace(r, reward=1.0) for r in POOL[5].responses]
    with pytest.raises(InputError, match="no informative prompt"):
        growing.add([replace(POOL[5], responses=solved)])
    after = growing.influence(POOL[:4]).estimate
    np.testing.assert_array_equal(before.mean["words"], after.mean["words"])
