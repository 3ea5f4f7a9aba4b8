"""What a rollout engine is: prompts of token ids in, sampled token ids and log-probs out.

An engine is one small class. What is registered for it, or the user's `package.module:object`, is
called with its settings and a `PolicyRef`; it calls the reference's `load` only if it needs the
weights in this process. This module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import FinishReason, LogprobMode, Sampling
from cropi.short_repr import ShortRepr


@dataclass(frozen=True, slots=True, repr=False)
class Completion(ShortRepr):
    """One sampled response: `ids` int32 [T], with the EOS token if it was sampled.

    `logprobs` float32 [T] are in nats, of the distribution that was sampled (after temperature,
    top-k and top-p, renormalised), or of the model's distribution if decoding was greedy; an engine
    whose log-probs are of another distribution says so in `logprob_mode`.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    logprob_mode: LogprobMode = "processed"
    exact: bool = True


class RolloutEngine(Protocol):
    """Samples responses from one policy."""

    @property
    def context(self) -> int:
        """How many positions the policy has, for a prompt and its response together."""
        ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        """Return `n` completions per prompt, in order; equal calls give equal results."""
        ...


@runtime_checkable
class StreamingEngine(RolloutEngine, Protocol):
    """An engine whose prompts are independent of each other: each has a seed of its own.

    Their responses are stored as they arrive, so that none is lost when the program is killed.
    """

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's index and its `n` completions, in any order."""
        ...


def _shorter(tokens: int, context: int) -> str:
    """What makes a prompt and its response fit into a context."""
    if tokens >= context:
        return "shorten it, or drop it (in a run: prompts.overlong=drop)"
    return (
        f"lower max_new_tokens to {context - tokens} or less, shorten the prompt, or drop it "
        "(in a run: prompts.overlong=drop)"
    )


def require_context(
    named_prompts: Sequence[tuple[str, Sequence[int]]], new_tokens: int, context: int
) -> None:
    """Raise InputError naming the first prompt that is empty or leaves no room for `new_tokens`."""
    for name, ids in named_prompts:
        if len(ids) == 0:
            raise InputError(f"prompt {name} has no tokens; give it some text or remove it")
        if len(ids) + new_tokens > context:
            raise InputError(
                f"prompt {name} has {len(ids)} tokens, and with max_new_tokens {new_tokens} it "
                f"exceeds the model's context of {context}; {_shorter(len(ids), context)}"
            )
