"""The reward functions of a running TRL trainer, as what judges rollouts.

They are called as TRL calls them, in this process: what is sampled for influence is judged by the
very functions that training uses.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.text import plural, shown
from cropi.verifiers.verdict import Verdict

NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not hand to reward functions."""


class TrainerRewards:
    """A `Grader` made of TRL's reward functions and their weights.

    `rows` are the data set's rows by prompt id; `state` is the trainer's, which functions may read.
    A response to which no function applies (all return None) is not judged.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        weights: Sequence[float],
        rows: Mapping[str, Mapping[str, Any]],
        state: Any,
    ) -> None:
        self.functions, self.weights = list(functions), list(weights)
        self.rows, self.state = rows, state

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        """Return one verdict per (prompt, response text), in order.

        Raises InputError if a function fails or returns something else than a reward each.
        """
        if not items:
            return []
        rows = [self.rows[prompt.prompt_id] for prompt, _ in items]
        arguments: dict[str, Any] = {
            "prompts": [row["prompt"] for row in rows],
            "completions": [_completion(prompt, text) for prompt, text in items],
            "completion_ids": [list(ids) for ids in token_ids or [[]] * len(items)],
            "trainer_state": self.state,
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        names = dict.fromkeys(name for row in rows for name in row if name not in NOT_COLUMNS)
        columns = {name: [row.get(name) for row in rows] for name in names}
        given = [self._rewards(function, {**arguments, **columns}) for function in self.functions]
        return [self._verdict(rewards) for rewards in zip(*given, strict=True)]

    def _rewards(self, function: Callable[..., Any], arguments: dict[str, Any]) -> list[float]:
        name, count = getattr(function, "__name__", str(function)), len(arguments["prompts"])
        try:
            rewards = function(**arguments)
            rewards = asyncio.run(_awaited(rewards)) if inspect.isawaitable(rewards) else rewards
            values = [math.nan if reward is None else float(reward) for reward in rewards]
        except Exception as error:
            raise InputError(
                f"reward function {name} failed on responses sampled for influence "
                f"({type(error).__name__}: {shown(str(error), 200)}); fix it"
            ) from error
        if len(values) != count:
            raise InputError(
                f"reward function {name} returned {plural(len(values), 'reward')} for "
                f"{plural(count, 'response')}; return one each"
            )
        return values

    def _verdict(self, rewards: Sequence[float]) -> Verdict:
        """The weighted sum of the rewards that apply, as TRL adds them up."""
        pairs = zip(rewards, self.weights, strict=True)
        terms = [reward * weight for reward, weight in pairs if not math.isnan(reward)]
        if not terms:
            return Verdict(math.nan, "error", "no reward function applies")
        total = sum(terms)
        if not math.isfinite(total):
            return Verdict(math.nan, "error", f"the reward is {total}")
        return Verdict(total, "ok")


def _completion(prompt: Prompt, text: str) -> Any:
    """A completion as TRL passes it: a message if the prompt is a chat."""
    return text if prompt.messages is None else [{"role": "assistant", "content": text}]


async def _awaited(value: Any) -> Any:
    return await value


def _ignore(*_: Any, **__: Any) -> None:
    """Replace TRL's logging functions: these responses are not training's."""
