"""Numbers of rollouts in memory that nothing can be computed from, refused by prompt.

Files are checked when they are read (`columns`), with their row; this is for groups that a caller
made. NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cropi.errors import InputError
from cropi.schema import MAX_LOGPROB, MAX_REWARD, TEMPERATURES, Response, RolloutGroup


def require_sound_numbers(groups: Sequence[RolloutGroup]) -> None:
    """Raise InputError naming the first prompt with an impossible temperature, reward or log-prob.

    NaN among the log-probs is left to whoever reads them, and minus infinity is a log-prob.
    """
    low, high = TEMPERATURES
    for group in groups:
        if not low <= group.sampling.temperature <= high:
            raise InputError(
                f"prompt {group.prompt_id}: temperature {group.sampling.temperature} is not within "
                f"{low:g} and {high:g}; give the temperature that the responses were sampled at"
            )
        for number, response in enumerate(group.responses):
            if response.usable and (problem := _problem(response)):
                raise InputError(f"prompt {group.prompt_id}, response {number}: {problem}")


def _problem(response: Response) -> str:
    """What is wrong with a usable response's numbers; empty if nothing is."""
    if not math.isfinite(response.reward):
        return (
            f"reward {response.reward} is not a finite number although its reward_status is ok; "
            "mark it as error"
        )
    if abs(response.reward) > MAX_REWARD:
        return f"reward {response.reward:g} is beyond {MAX_REWARD:.0e}; rescale the rewards"
    if len(response.logprobs) != len(response.ids):
        return (
            f"{len(response.logprobs)} log-probs for {len(response.ids)} tokens; give one per token"
        )
    largest = float(np.max(response.logprobs[response.sampled]))
    if largest > MAX_LOGPROB:
        return (
            f"log-prob {largest:g} is above 0, which no probability has; give the natural log of "
            "each token's probability"
        )
    return ""
