"""What a verifier is, and what judging a response gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cropi.schema import Prompt, RewardStatus


@runtime_checkable
class Verifier(Protocol):
    """Judges one response to one prompt.

    Returns a finite reward; a wrong answer is a reward (usually 0.0), not an exception. Raises
    whatever it likes where it cannot judge, such as ValueError on an answer it cannot read: the
    response then has status "error" and leaves its group.
    """

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the reward of `completion`."""
        ...


class NotApplicableError(TypeError):
    """The function has no say on this response (TRL's None); in a weighted sum it is left out."""


@runtime_checkable
class TokenVerifier(Protocol):
    """A verifier that also looks at the response's token ids (TRL's `completion_ids`)."""

    def judge_tokens(
        self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None
    ) -> float:
        """Return the reward; `token_ids` is None where only the text is known."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one response; `reward` is NaN and `detail` says why unless status is "ok"."""

    reward: float
    status: RewardStatus
    detail: str = ""


Term = tuple[str, float]
"""A resolved function and its weight."""


@dataclass(frozen=True, slots=True)
class Job:
    """One response to judge, by the weighted sum of `terms`."""

    terms: tuple[Term, ...]
    prompt: Prompt
    completion: str
    token_ids: tuple[int, ...] | None = None
