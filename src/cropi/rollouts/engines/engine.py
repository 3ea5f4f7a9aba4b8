"""What a rollout engine is: prompts of token ids in, sampled token ids and log-probs out.

An engine is one small class; what registers it, or `package.module:object`, is called with its
settings and the policy. This module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.rollouts.settings import EngineChoice
from cropi.schema import FinishReason, Sampling

if TYPE_CHECKING:
    from cropi.policy.loading import Policy


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response: `ids` int32 [T], the EOS included where it was sampled.

    `logprobs` float32 [T] are in nats, of the distribution that was really sampled (after
    temperature, top-k and top-p, renormalised); of the model's own distribution where decoding
    was greedy.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason


class RolloutEngine(Protocol):
    """Samples responses from one policy."""

    @property
    def context(self) -> int:
        """Positions the policy has: a prompt and its response must fit together."""
        ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        """Return `n` completions a prompt, in their order; equal calls give equal results."""
        ...


def load_engine(choice: EngineChoice | str, policy: Policy) -> RolloutEngine:
    """Return the chosen engine, with its settings, around `policy`; a name means the defaults.

    Raises InputError if there is none of that name.
    """
    if isinstance(choice, str):
        choice = EngineChoice.of(choice)
    return cast(RolloutEngine, choice.build(policy))


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
                f"exceeds the model's context of {context}; shorten it, lower max_new_tokens, or "
                "drop it (in a run: prompts.overlong=drop)"
            )
