"""Pass rates under a policy that has moved on are those of a plain loop over responses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from cropi.errors import InputError
from cropi.gradients.logprobs import LogprobReader, read_logprobs
from cropi.rollouts.current_rates import LEAST_EFFECTIVE, current_pass_rates, tokens_read
from cropi.schema import RolloutGroup
from support.tiny_models import mixed_groups, random_group, tiny_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("qwen2-tied")


def near(model: nn.Module, groups: list[RolloutGroup], spread: float) -> list[RolloutGroup]:
    """The same responses as if a sampler close to the model had sampled them."""
    draws, near_model = np.random.default_rng(5), []
    for group, logprobs in zip(groups, read_logprobs(LogprobReader(model), groups), strict=True):
        moved = [
            replace(r, logprobs=(lp + draws.normal(0, spread, len(lp))).clip(max=0).astype("f4"))
            for r, lp in zip(group.usable, logprobs, strict=True)
        ]
        near_model.append(replace(group, responses=moved))
    return near_model


def by_loop(model: nn.Module, group: RolloutGroup, threshold: float | None = None) -> float:
    (current,) = read_logprobs(LogprobReader(model), [group])
    weights, rewards = [], []
    for response, logprobs in zip(group.usable, current, strict=True):
        log = float((logprobs - response.logprobs.astype(np.float64)).sum())
        weights.append(math.exp(min(max(log, -5.0), 5.0)))
        reward = response.reward
        rewards.append(reward if threshold is None else float(reward >= threshold))
    effective = sum(weights) ** 2 / sum(w * w for w in weights)
    if effective < LEAST_EFFECTIVE:
        return sum(rewards) / len(rewards)
    return sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("spread", [0.1, 1.5])
def test_rates_are_those_of_a_plain_loop(
    model: nn.Module, threshold: float | None, spread: float
) -> None:
    groups = near(model, mixed_groups(14), spread)
    done: list[int] = []
    rates = current_pass_rates(model, groups, threshold, 100, done.append)
    assert rates.tolist() == pytest.approx([by_loop(model, g, threshold) for g in groups], abs=1e-4)
    assert sum(done) <= len(groups)


def test_under_the_sampler_itself_they_are_the_plain_means(model: nn.Module) -> None:
    groups = near(model, mixed_groups(6), 0.0)
    plain = [group.rewards.mean() for group in groups]
    assert current_pass_rates(model, groups).tolist() == pytest.approx(plain, abs=1e-4)


def test_equal_rewards_are_not_read_and_none_is_unknown(model: nn.Module) -> None:
    group = random_group(np.random.default_rng(0), "equal")
    right = replace(group, responses=[replace(r, reward=1.0) for r in group.responses])
    failed = [replace(r, reward=math.nan, reward_status="error") for r in group.responses]
    rates = current_pass_rates(model, [right, replace(group, responses=failed)])
    assert rates[0] == 1.0
    assert np.isnan(rates[1])
    assert tokens_read([right]) == 0 < tokens_read([group])
    assert tokens_read([group], threshold=-1.0) == 0  # all pass


def test_one_responses_wild_log_prob_moves_no_other_prompt(model: nn.Module) -> None:
    groups = near(model, mixed_groups(4), 0.1)
    before = current_pass_rates(model, groups)
    wild = [replace(r, logprobs=np.full(len(r.ids), -9999, "f4")) for r in groups[1].responses[:1]]
    groups[1] = replace(groups[1], responses=[*wild, *groups[1].responses[1:]])
    after = current_pass_rates(model, groups)
    assert np.isfinite(after).all()
    assert np.delete(after, 1).tolist() == pytest.approx(np.delete(before, 1).tolist(), abs=1e-6)


def test_log_probs_of_another_temperature_are_refused(model: nn.Module) -> None:
    group = random_group(np.random.default_rng(0), temperature=0.5)
    with pytest.raises(InputError, match="ratios would compare two temperatures"):
        current_pass_rates(model, [replace(group, logprob_mode="raw")])
