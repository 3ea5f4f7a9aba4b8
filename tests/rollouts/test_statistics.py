"""Statistics count what docs/method.md counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.rollouts.statistics import GROUP_SIZE, pass_history, rollout_statistics
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


def test_a_history_counts_the_passes_of_the_pools_prompts_round_by_round() -> None:
    first = [replace(group([1.0, 0.0]), prompt_id="a"), replace(group([1.0]), prompt_id="b")]
    second = [
        replace(group([1.0, "timeout", 1.0, 0.5]), prompt_id="b"),
        replace(group([1.0]), prompt_id="of another pool"),
    ]
    history = pass_history(["a", "b", "c"], [first, second])
    assert history.passes.tolist() == [[1, 1, 0], [0, 2.5, 0]]
    assert history.responses.tolist() == [[2, 1, 0], [0, 3, 0]]
    assert history.rates[0].tolist()[:2] == [0.5, 1.0]
    assert np.isnan(history.rates[:, 2]).all()
    assert pass_history(["b"], [second], threshold=0.6).passes.tolist() == [[2]]


def test_the_latest_of_a_later_round_are_its_last_responses_and_of_the_first_all() -> None:
    learnt = [0.0] * 12 + [1.0] * GROUP_SIZE
    first = group(learnt)
    history = pass_history([first.prompt_id], [[first], [group(learnt)], [group([0.5, 1.0])]])
    latest = history.latest
    assert latest is not None
    assert latest.responses[:, 0].tolist() == [20, GROUP_SIZE, 2]
    assert latest.passes[:, 0].tolist() == [8, 8, 1.5]
    assert latest.mixed[:, 0].tolist() == [True, False, True]
    assert history.mixed[:, 0].tolist() == [True, True, True]


def test_a_round_of_another_pool_is_refused() -> None:
    with pytest.raises(InputError, match="round 1 of the history has no rollout of the pool's"):
        pass_history(["a"], [[replace(group([1.0]), prompt_id=name)] for name in ("a", "b")])
