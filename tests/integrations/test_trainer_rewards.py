"""Reward functions are called as TRL calls them, and add up as TRL adds them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from cropi.errors import InputError
from cropi.integrations.trainer_rewards import TrainerRewards
from cropi.schema import Prompt

ROWS: dict[str, dict[str, Any]] = {
    "a": {"prompt": "1+1", "answer": 2},
    "b": {"prompt": [{"role": "user", "content": "2+2"}], "answer": 4, "level": 3},
}
ITEMS = [
    (Prompt("a", "", "", prompt="1+1"), "2"),
    (Prompt("b", "", "", messages=({"role": "user", "content": "2+2"},)), "5"),
]


def judged(*functions: Any, weights: tuple[float, ...] = (1.0,)) -> list[Any]:
    state = SimpleNamespace(global_step=7)
    return TrainerRewards(functions, weights, ROWS, state).judge(ITEMS, [[1], [2, 3]])


def test_a_function_gets_what_trl_gives_it() -> None:
    calls: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        calls.append(given)
        return [0.0, 1.0]

    assert [verdict.reward for verdict in judged(reward)] == [0.0, 1.0]
    (given,) = calls
    assert given["prompts"] == ["1+1", ROWS["b"]["prompt"]]
    assert given["completions"] == ["2", [{"role": "assistant", "content": "5"}]]
    assert given["completion_ids"] == [[1], [2, 3]]
    assert (given["answer"], given["level"]) == ([2, 4], [None, 3])
    assert given["trainer_state"].global_step == 7


def test_rewards_are_weighted_and_those_that_do_not_apply_left_out() -> None:
    async def late(**_: Any) -> list[float]:
        return [1.0, 0.5]

    def some(**_: Any) -> list[float | None]:
        return [None, 3.0]

    assert [v.reward for v in judged(late, some, weights=(2.0, 0.1))] == pytest.approx([2.0, 1.3])
    alone = judged(some)
    assert (alone[0].status, alone[1].status) == ("error", "ok")
    assert math.isnan(alone[0].reward)


def test_a_function_that_fails_is_named() -> None:
    def broken(**_: Any) -> list[float]:
        raise KeyError("level")

    def short(**_: Any) -> list[float]:
        return [1.0]

    with pytest.raises(InputError, match=r"reward function broken failed .*KeyError"):
        judged(broken)
    with pytest.raises(InputError, match="short returned 1 reward for 2 responses"):
        judged(short)
