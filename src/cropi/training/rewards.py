"""TRL's reward function: our judge, with a record of what was really trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cropi.schema import Prompt
from cropi.verifiers import Judge


class JudgedRewards:
    """Rewards for TRL, by prompt id.

    A response that could not be judged must not count as wrong, and TRL reads a missing reward as
    0. So it gets the mean of its group's judged rewards, which gives it an advantage of zero and
    moves nobody else's mean. `visited` lists the prompt of each group in the order trained.
    """

    __name__ = "verifier"

    def __init__(self, judge: Judge, prompts: Mapping[str, Prompt], generations: int) -> None:
        self.judge = judge
        self.prompts = prompts
        self.generations = generations
        self.visited: list[str] = []
        self.completion_tokens = 0
        self.statuses: Counter[str] = Counter()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_id: Sequence[str],
        **columns: Any,
    ) -> list[float]:
        """Return one reward a completion."""
        items = [
            (self.prompts[i], completion_text(c))
            for i, c in zip(prompt_id, completions, strict=True)
        ]
        verdicts = self.judge.judge(items, token_ids=completion_ids)
        self.visited += self._groups(prompt_id)
        self.completion_tokens += sum(map(len, completion_ids))
        self.statuses.update(v.status for v in verdicts)
        rewards = [v.reward if v.status == "ok" else math.nan for v in verdicts]
        return neutralised(rewards, self.generations)

    def _groups(self, prompt_id: Sequence[str]) -> list[str]:
        """One id a group; a group of mixed prompts would be a broken trainer."""
        groups = [
            set(prompt_id[i : i + self.generations])
            for i in range(0, len(prompt_id), self.generations)
        ]
        assert all(len(g) == 1 for g in groups), "a group holds more than one prompt"
        return [g.pop() for g in groups]


def completion_text(completion: Any) -> str:
    """The text of a TRL completion: a string, or one assistant message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])


def neutralised(rewards: Sequence[float], generations: int) -> list[float]:
    """Replace NaN by the mean of the group's other rewards, or 0 where a group has none."""
    values = np.array(rewards, dtype=np.float64).reshape(-1, generations)
    known = ~np.isnan(values)
    counts = known.sum(1)
    means = np.where(counts > 0, np.where(known, values, 0).sum(1) / np.maximum(counts, 1), 0.0)
    return [float(v) for v in np.where(known, values, means[:, None]).ravel()]
