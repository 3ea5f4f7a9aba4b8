"""A completion gets the reward of its own prompt; one that could not be judged has no effect."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cropi.schema import Prompt
from cropi.training.rewards import JudgedRewards, completion_text, fill_unjudged_with_group_mean
from cropi.verifiers.verdict import Verdict

PROMPTS = {i: Prompt(i, i.upper(), "s", prompt=i) for i in "ab"}


class ScriptedJudge:
    """Right answers earn 1, `?` times out."""

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        assert token_ids is not None
        return [
            Verdict(math.nan, "timeout") if text == "?" else Verdict(float(text == p.answer), "ok")
            for p, text in items
        ]


def rewarded(ids: list[str], texts: list[str]) -> tuple[JudgedRewards, list[float]]:
    rewards = JudgedRewards(ScriptedJudge(), PROMPTS, 2)  # type: ignore[arg-type]
    values = rewards(ids, texts, [[1]] * len(texts), prompt_id=ids, other=["x"] * len(texts))
    return rewards, values


def test_each_completion_is_judged_by_its_own_prompt() -> None:
    rewards, values = rewarded(["b", "b", "a", "a"], ["A", "B", "A", "x"])
    assert values == [0.0, 1.0, 1.0, 0.0]
    assert rewards.trained == ["b", "a"]
    assert (rewards.generated_tokens, rewards.trained_tokens) == (4, 4)


def test_a_group_of_two_prompts_is_a_broken_trainer() -> None:
    with pytest.raises(AssertionError, match="more than one prompt"):
        rewarded(["a", "b"], ["A", "B"])


def test_an_unjudged_completion_has_no_advantage_and_does_not_change_the_mean() -> None:
    rewards, values = rewarded(["a", "a", "b", "b"], ["?", "A", "?", "?"])
    assert values == [1.0, 1.0, 0.0, 0.0]
    assert rewards.statuses == {"timeout": 3, "ok": 1}


@pytest.mark.parametrize("reward", [0.0, 0.25, -1.0])
def test_filled_rewards_equal_the_mean_of_the_rest(reward: float) -> None:
    group = fill_unjudged_with_group_mean([reward, 1.0, math.nan, math.nan], 4)
    assert group[2] == group[3] == (reward + 1.0) / 2
    assert sum(group) / 4 == pytest.approx((reward + 1.0) / 2)


def test_a_chat_completion_is_its_message() -> None:
    assert completion_text("x") == "x"
    assert completion_text([{"role": "assistant", "content": "y"}]) == "y"
