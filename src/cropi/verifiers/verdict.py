"""What a verifier is, and what judging a response returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


class NotApplicableError(TypeError):
    """The function does not apply to this response (TRL's None); weighted sums leave it out."""


@runtime_checkable
class TokenVerifier(Protocol):
    """A verifier that also reads the response's token ids (TRL's `completion_ids`)."""

    def judge_tokens(
        self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None
    ) -> float:
        """Return the reward; `token_ids` is None if only the text is known."""
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
class Verdict:
    """The outcome for one response; `reward` is NaN and `detail` says why unless status is "ok"."""

    reward: float
    status: RewardStatus
    detail: str = ""


WeightedReward = tuple[str, float]
"""A verifier's resolved name and its weight."""


@dataclass(frozen=True, slots=True)
class Job:
    """One response to judge by the weighted sum of `rewards`; with `check`, an answer to read."""

    rewards: tuple[WeightedReward, ...]
    prompt: Prompt
    completion: str
    token_ids: tuple[int, ...] | None = None
    check: bool = False
