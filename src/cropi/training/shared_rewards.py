"""Rewards where several processes train together: the first of them judges for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from cropi.training.process_group import ProcessGroup
from cropi.training.rewards import JudgedRewards, completion_text

Share = tuple[list[str], list[str], list[list[int]]]
"""A process's prompt ids, response texts and token ids, one of each per response."""


class SharedRewards:
    """TRL's reward function in every process: each response is judged once, and recorded once.

    Groups may lie on two processes. `planned` are the prompts of the stage in their order, one a
    group; every process asserts that it trains on its own part of them.
    """

    __name__ = "verifier"

    def __init__(self, rewards: JudgedRewards, group: ProcessGroup, planned: Sequence[str]) -> None:
        self.rewards = rewards
        self.group = group
        self.planned = planned
        self._rows = 0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_id: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return one reward per completion of this process."""
        self._require_planned(prompt_id)
        texts = [completion_text(each) for each in completions]
        share: Share = (list(prompt_id), texts, [list(ids) for ids in completion_ids])
        shares = self.group.together(lambda: share)
        rewards = self.group.by_first(lambda: self._judge(shares))
        before = sum(len(ids) for ids, _, _ in shares[: self.group.index])
        return rewards[before : before + len(prompt_id)]

    def _judge(self, shares: Sequence[Share]) -> list[float]:
        ids, texts, tokens = (list(chain.from_iterable(each)) for each in zip(*shares, strict=True))
        return self.rewards(texts, texts, tokens, ids)

    def _require_planned(self, prompt_id: Sequence[str]) -> None:
        """Assert that this process has its part of the step's responses, in the planned order."""
        begin = self._rows + self.group.index * len(prompt_id)
        rows = range(begin, begin + len(prompt_id))
        planned = [self.planned[row // self.rewards.group_size] for row in rows]
        assert list(prompt_id) == planned, f"process {self.group.index} has other prompts"
        self._rows += self.group.count * len(prompt_id)
