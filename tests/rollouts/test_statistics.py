"""Statistics count what docs/method.md counts."""

from __future__ import annotations

import numpy as np

from cropi.rollouts.statistics import rollout_statistics
from cropi.schema import Response, RolloutGroup


def group(rewards: list[float | str], ids: list[list[int]] | None = None) -> RolloutGroup:
    ids = ids or [[r] for r in range(len(rewards))]
    responses = [
        Response(np.array(i, np.int32), np.zeros(len(i), np.float32), reward_status="timeout")
        if isinstance(reward, str)
        else Response(np.array(i, np.int32), np.zeros(len(i), np.float32), reward=reward)
        for reward, i in zip(rewards, ids, strict=True)
    ]
    return RolloutGroup("p", np.array([1], np.int32), responses)


def test_unjudged_and_empty_responses_leave_the_mean_and_are_counted() -> None:
    statistics = rollout_statistics([group([1.0, 0.0, "timeout", 0.0], [[1], [1], [2], []])])
    assert statistics.pass_rates.tolist() == [0.5]
    assert statistics.variances.tolist() == [0.25]
    assert statistics.distinct.tolist() == [3]
    assert statistics.tokens.tolist() == [3]
    assert {name: counts.tolist() for name, counts in statistics.statuses.items()} == {
        "ok": [3],
        "timeout": [1],
        "error": [0],
    }


def test_equal_rewards_or_a_single_one_are_uninformative() -> None:
    statistics = rollout_statistics([group([1.0, 1.0]), group([1.0, "timeout"]), group([0.0, 0.5])])
    assert statistics.informative.tolist() == [False, False, True]


def test_a_threshold_turns_graded_rewards_into_passes() -> None:
    graded = group([0.2, 0.6, 0.7, 1.0])
    assert rollout_statistics([graded]).pass_rates[0] == np.mean([0.2, 0.6, 0.7, 1.0])
    statistics = rollout_statistics([graded], threshold=0.6)
    assert statistics.pass_rates.tolist() == [0.75]
    assert statistics.variances.tolist() == [0.75 * 0.25]


def test_a_prompt_without_a_usable_response_has_no_pass_rate() -> None:
    assert np.isnan(rollout_statistics([group(["timeout"])]).pass_rates[0])
