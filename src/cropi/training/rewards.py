"""TRL's reward function: our judge, with a record of what was sampled and trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.schema import Prompt, rewards_differ
from cropi.verifiers import Judge
from cropi.verifiers.verdict import Verdict


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """The judged responses to one prompt, all lists in the order of sampling.

    `completions` holds token ids, `texts` what was judged. `logprobs`, one float32 [T] per
    response, are the sampler's, where it reports them.
    """

    prompt_id: str
    completions: list[list[int]]
    texts: list[str]
    verdicts: list[Verdict]
    logprobs: list[NDArray[np.float32]] | None = None


class JudgedRewards:
    """Rewards for TRL, by prompt id.

    A response that could not be judged must not count as wrong, and TRL reads a missing reward as
    0. So it gets the mean of its group's judged rewards, which gives it an advantage of zero and
    does not change the mean.

    `sampled` lists the prompt of each group in the order of sampling and `trained` in the order of
    training; the two differ where dynamic sampling dropped groups. `generated_tokens` and
    `trained_tokens` count those groups' response tokens, `uninformative` the trained groups
    without a gradient, `statuses` the verdicts on everything sampled.
    """

    __name__ = "verifier"

    def __init__(self, judge: Judge, prompts: Mapping[str, Prompt], group_size: int) -> None:
        self.judge = judge
        self.prompts = prompts
        self.group_size = group_size
        self.sampled: list[str] = []
        self.trained: list[str] = []
        self.generated_tokens = 0
        self.trained_tokens = 0
        self.uninformative = 0
        self.statuses: Counter[str] = Counter()
        self._groups: list[SampledGroup] = []

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
        """Return one reward per completion.

        `verdict` and `candidates` come from dynamic sampling, which has judged already; the latter
        is the number of groups it sampled for this step.
        """
        if verdict is None:
            texts = [completion_text(c) for c in completions]
            groups = self.judged(prompt_id, texts, completion_ids)
            verdict = [v for group in groups for v in group.verdicts]
        if candidates is not None and log_metric is not None:
            log_metric("candidates", candidates[0])
        self.trained += self._prompt_of_each_group(prompt_id)
        self.trained_tokens += sum(map(len, completion_ids))
        starts = range(0, len(verdict), self.group_size)
        self.uninformative += sum(not informative(verdict[i : i + self.group_size]) for i in starts)
        rewards = [v.reward if v.status == "ok" else math.nan for v in verdict]
        return fill_unjudged_with_group_mean(rewards, self.group_size)

    def judged(
        self,
        prompt_id: Sequence[str],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        logprobs: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[SampledGroup]:
        """Judge whole groups in one call and count them as sampled.

        The arguments have one entry per completion, a group's completions beside each other.
        """
        items = [(self.prompts[i], text) for i, text in zip(prompt_id, texts, strict=True)]
        verdicts = self.judge.judge(items, token_ids=completion_ids)
        of_groups = self._prompt_of_each_group(prompt_id)
        groups = []
        for number, name in enumerate(of_groups):
            rows = slice(number * self.group_size, (number + 1) * self.group_size)
            completions = [list(ids) for ids in completion_ids[rows]]
            sampler = None if logprobs is None else list(logprobs[rows])
            groups.append(
                SampledGroup(name, completions, list(texts[rows]), list(verdicts[rows]), sampler)
            )
        self.sampled += of_groups
        self.generated_tokens += sum(map(len, completion_ids))
        self.statuses.update(v.status for v in verdicts)
        self._groups += groups
        return groups

    def take_groups(self) -> list[SampledGroup]:
        """Return the groups judged since the last call."""
        taken, self._groups = self._groups, []
        return taken

    def _prompt_of_each_group(self, prompt_id: Sequence[str]) -> list[str]:
        """One id per group; a group of mixed prompts would be a broken trainer."""
        groups = [
            set(prompt_id[i : i + self.group_size])
            for i in range(0, len(prompt_id), self.group_size)
        ]
        assert all(len(g) == 1 for g in groups), "a group holds more than one prompt"
        return [g.pop() for g in groups]


def informative(verdicts: Sequence[Verdict]) -> bool:
    """Whether a group has a gradient: the rewards of its judged responses are not all equal."""
    rewards = [v.reward for v in verdicts if v.status == "ok"]
    return len(rewards) > 1 and rewards_differ(min(rewards), max(rewards))


def completion_text(completion: Any) -> str:
    """The text of a TRL completion: a string, or one assistant message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])


def fill_unjudged_with_group_mean(rewards: Sequence[float], group_size: int) -> list[float]:
    """Replace NaN by the mean of the group's other rewards, or 0 where a group has none."""
    values = np.array(rewards, dtype=np.float64).reshape(-1, group_size)
    judged = ~np.isnan(values)
    counts = judged.sum(1)
    sums = np.where(judged, values, 0).sum(1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    return [float(v) for v in np.where(judged, values, means[:, None]).ravel()]
