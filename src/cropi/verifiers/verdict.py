"""What a verifier is, and what judging a response returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from cropi.schema import Prompt, RewardStatus


@runtime_checkable
class Verifier(Protocol):
    """Judges one response to one prompt.

    Returns a finite reward; a wrong answer is a reward (usually 0.0), not an exception. If it
    cannot judge, for example because it cannot read the answer, it raises any exception: the
    response then has status "error" and leaves its group.
    """

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the reward of `completion`."""
        ...


@runtime_checkable
class AnswerChecker(Protocol):
    """A verifier that can tell whether it reads a prompt's answer, without a response."""

    def check_answer(self, prompt: Prompt) -> None:
        """Raise ValueError, saying why, if the prompt's answer cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a response is right, the statement taken out of it, and the stage that decided."""

    right: bool
    stage: str
    statement: str


@runtime_checkable
class Explainer(Protocol):
    """A verifier that can say what it takes for the answer and for the statement."""

    def read_as(self, prompt: Prompt) -> str:
        """Return what the prompt's answer is read as. Raises ValueError if it cannot be read."""
        ...

    def decide(self, prompt: Prompt, completion: str) -> Decision:
        """Return the decision that the reward of `completion` follows."""
        ...


class NotApplicableError(TypeError):
    """The function does not apply to this response (TRL's None); weighted sums leave it out."""


@runtime_checkable
class GroupVerifier(Protocol):
    """A verifier that sees all responses to a prompt in one call, as trainers call functions."""

    def judge_group(self, job: Job) -> Sequence[float | Exception]:
        """Return, for each response of a job, its reward or why it has none."""
        ...


class Grader(Protocol):
    """Whatever gives verdicts on responses; `cropi.verifiers.Judge` is the one that runs use."""

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> Sequence[Verdict]:
        """Return one verdict per (prompt, response text), in order."""
        ...


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts that were given: by source and outcome, and why responses were not judged."""

    counts: Mapping[str, Counter[Any]]
    reasons: Counter[str]


@runtime_checkable
class Tallying(Protocol):
    """A grader that counts, and whose copies in other processes can say what they counted."""

    def tally(self) -> Tally | None:
        """What a copy has counted since the last call; None of the original."""
        ...

    def add(self, counts: Mapping[str, Mapping[Any, int]], reasons: Mapping[str, int]) -> None:
        """Count what a copy has counted."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one response; `reward` is NaN and `detail` says why unless status is "ok"."""

    reward: float
    status: RewardStatus
    detail: str = ""


WeightedReward = tuple[str, float]
"""A verifier's resolved name and its weight."""


@dataclass(frozen=True, slots=True)
class Job:
    """Responses to one prompt, to be judged by the weighted sum of `rewards`.

    There are several where a function sees whole groups. `token_ids` are those of each response, if
    they are known; `step` is the trainer's, `absent` the columns that other rows have. With
    `check`, only the answer is read.
    """

    rewards: tuple[WeightedReward, ...]
    prompt: Prompt
    completions: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...] | None = None
    step: int = 0
    absent: tuple[str, ...] = ()
    check: bool = False

    def only(self, places: Sequence[int]) -> Job:
        """Return the job with the responses at these places alone."""
        ids = self.token_ids
        return replace(
            self,
            completions=tuple(self.completions[p] for p in places),
            token_ids=None if ids is None else tuple(ids[p] for p in places),
        )
