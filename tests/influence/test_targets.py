"""Target directions: weights, halves and reliability, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cropi.gradients.pass_record import RatioSummary
from cropi.influence.left_out_prompts import distance_notes
from cropi.influence.targets import (
    Target,
    half_products,
    half_weights,
    target_reliability,
    target_weights,
)


@pytest.mark.parametrize("target", ["mean", "unit_mean"])
def test_halves_add_up_to_the_weights_of_even_and_odd_prompts(target: Target) -> None:
    norms = np.random.default_rng(0).random(7)
    halves = half_weights(norms, target)
    weights = target_weights(norms, target)
    assert halves.sum(0).tolist() == weights.tolist()
    assert halves[0, ::2].tolist() == weights[::2].tolist()
    assert halves[1, 1::2].tolist() == weights[1::2].tolist()
    assert not halves[0, 1::2].any()
    assert not halves[1, ::2].any()


@pytest.mark.parametrize("count", [1, 2, 7, 64, 129])
def test_sums_with_half_weights_keep_every_bit_of_sums_over_each_half(count: int) -> None:
    rng = np.random.default_rng(count)
    sketches, norms = rng.normal(size=(count, 513)), rng.random(count) + 0.1
    weights = target_weights(norms, "unit_mean")
    halves = [(w[:, None] * sketches).sum(0) for w in half_weights(norms, "unit_mean")]
    for half, sums in enumerate(halves):
        alone = (weights[half::2, None] * sketches[half::2]).sum(0)
        assert np.array_equal(sums, alone)


def test_a_prompt_whose_gradient_cancels_has_no_weight_in_a_unit_mean() -> None:
    assert target_weights(np.array([2.0, 0.0]), "unit_mean").tolist() == [0.25, 0.0]
    assert target_weights(np.array([2.0, 0.0]), "mean").tolist() == [0.5, 0.5]


def test_reliability_by_hand() -> None:
    gradients = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    norms = np.linalg.norm(gradients, axis=1)
    weights = half_weights(norms, "mean")
    reliability = target_reliability(weights, norms, half_products(weights @ gradients))
    # Halves (1, 0) and (1/4, 1/4); norms 3, 1, 1, 1.
    assert reliability.split_half == pytest.approx(math.sqrt(0.5))
    assert reliability.effective == pytest.approx(36 / 12)
    assert reliability.largest_share == pytest.approx(0.5)
    assert reliability.informative == 4


def summary(policy: np.ndarray, sampler: np.ndarray) -> RatioSummary:
    log_ratios = policy - sampler
    ratios = np.exp(log_ratios)
    share = ratios.sum() ** 2 / (ratios**2).sum() / len(ratios)
    return RatioSummary(
        len(ratios), float(-log_ratios.mean()), share, mean_ratio=float(ratios.mean())
    )


MISSTORED = {
    "base 2": lambda logprobs: logprobs / math.log(2),
    "base 10": lambda logprobs: logprobs / math.log(10),
    "of the next token": lambda logprobs: np.roll(logprobs, -1),
    "backwards": lambda logprobs: logprobs[::-1],
    "their mean": lambda logprobs: np.full_like(logprobs, logprobs.mean()),
    "zero": np.zeros_like,
}


@pytest.mark.parametrize("moved", [0.0, 0.1, 0.3], ids="nats {}".format)
@pytest.mark.parametrize("tokens", [60, 3000], ids="{} tokens".format)
def test_log_probs_that_nobody_sampled_with_are_reported_and_a_moved_policy_is_not(
    moved: float, tokens: int
) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 2, (tokens, 50))
        tables = [logits, logits + moved * rng.normal(size=logits.shape)]
        sampler, policy = (t - np.log(np.exp(t).sum(1, keepdims=True)) for t in tables)
        drawn = (sampler + rng.gumbel(size=sampler.shape)).argmax(1)
        beta, pi = (table[np.arange(tokens), drawn] for table in (sampler, policy))
        assert not distance_notes("the pool", summary(pi, beta), averages_one=True)
        for name, store in MISSTORED.items():
            if tokens > 1000:
                assert distance_notes("the pool", summary(pi, store(beta)), True), name
