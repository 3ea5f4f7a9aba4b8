"""TRL's reward function: our judge, with a record of what was really sampled and trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.verdict import Verdict


class JudgedRewards:
    """Rewards for TRL, by prompt id.

    A response that could not be judged must not count as wrong, and TRL reads a missing reward as
    0. So it gets the mean of its group's judged rewards, which gives it an advantage of zero and
    moves nobody else's mean.

    `sampled` lists the prompt of each group in the order sampled and `visited` in the order
    trained; the two differ where dynamic sampling dropped groups. `generated_tokens` and
    `trained_tokens` count those groups' response tokens, `uninformative` the trained groups
    without a gradient, `statuses` the verdicts on everything sampled.
    """

    __name__ = "verifier"

    def __init__(self, judge: Judge, prompts: Mapping[str, Prompt], generations: int) -> None:
        self.judge = judge
        self.prompts = prompts
        self.generations = generations
        self.sampled: list[str] = []
        self.visited: list[str] = []
        self.generated_tokens = 0
        self.trained_tokens = 0
        self.uninformative = 0
        self.statuses: Counter[str] = Counter()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_id: Sequence[str],
        verdict: Sequence[Verdict] | None = None,
        candidates: Sequence[int] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return one reward a completion.

        `verdict` and `candidates` come from dynamic sampling, which has judged already; the latter
        says how many groups it sampled for this step.
        """
        if verdict is None:
            texts = [completion_text(c) for c in completions]
            verdict = self.judged(prompt_id, texts, completion_ids)
        if candidates is not None and log_metric is not None:
            log_metric("candidates", candidates[0])
        self.visited += self._groups(prompt_id)
        self.trained_tokens += sum(map(len, completion_ids))
        starts = range(0, len(verdict), self.generations)
        self.uninformative += sum(
            not informative(verdict[i : i + self.generations]) for i in starts
        )
        rewards = [v.reward if v.status == "ok" else math.nan for v in verdict]
        return neutralised(rewards, self.generations)

    def judged(
        self,
        prompt_id: Sequence[str],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
    ) -> list[Verdict]:
        """Judge whole groups and count them as sampled; one verdict a completion, in order."""
        items = [(self.prompts[i], text) for i, text in zip(prompt_id, texts, strict=True)]
        verdicts = self.judge.judge(items, token_ids=completion_ids)
        self.sampled += self._groups(prompt_id)
        self.generated_tokens += sum(map(len, completion_ids))
        self.statuses.update(v.status for v in verdicts)
        return verdicts

    def _groups(self, prompt_id: Sequence[str]) -> list[str]:
        """One id a group; a group of mixed prompts would be a broken trainer."""
        groups = [
            set(prompt_id[i : i + self.generations])
            for i in range(0, len(prompt_id), self.generations)
        ]
        assert all(len(g) == 1 for g in groups), "a group holds more than one prompt"
        return [g.pop() for g in groups]


def informative(verdicts: Sequence[Verdict]) -> bool:
    """Whether a group has a gradient: the rewards of its judged responses are not all equal."""
    rewards = {v.reward for v in verdicts if v.status == "ok"}
    return len(rewards) > 1


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
