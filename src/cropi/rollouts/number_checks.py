"""Numbers of rollouts that nothing can be computed from, refused by prompt.

Files are checked when they are read (`columns`), with their row; `require_sound_numbers` is for
groups that a caller made. Whether log-probs can be compared with a policy's depends on what is made
of them: `require_log_ratios` and `log_ratio_notes` are for those who form ratios. NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cropi.errors import InputError
from cropi.schema import MAX_LOGPROB, MAX_REWARD, TEMPERATURES, Response, RolloutGroup
from cropi.text import plural


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


def require_log_ratios(what: str, groups: Sequence[RolloutGroup]) -> None:
    """Raise InputError where log-probs are of another temperature than the responses of `what`."""
    wrong = [group for group in groups if group.logprobs_at_another_temperature]
    if wrong:
        raise InputError(
            f"{what}: the log-probs of {plural(len(wrong), 'prompt')}, first {wrong[0].prompt_id}, "
            "are raw, and its responses were sampled at temperature "
            f"{wrong[0].sampling.temperature:g}, so ratios would compare two temperatures; store "
            "the log-probs at that temperature, or score without ratios (objective.ratio=none)"
        )


def log_ratio_notes(what: str, groups: Sequence[RolloutGroup]) -> list[str]:
    """A warning where log-probs are of the whole distribution, and the tail was not sampled."""
    whole = [group for group in groups if group.tail_is_cut and not group.logprobs_are_cut]
    if not whole:
        return []
    return [
        f"{what}: {plural(len(whole), 'prompt')}, first {whole[0].prompt_id}, sampled with top_p "
        f"or top_k, with log-probs ({whole[0].logprob_mode}) of the distribution before that: "
        "ratios are too high by one over the share of the probability that was kept; "
        "objective.ratio=none uses none"
    ]


def inexact_notes(what: str, groups: Sequence[RolloutGroup]) -> list[str]:
    """A warning where responses came as text, and their tokens were made of it again."""
    inexact = [group for group in groups if not group.exact]
    if not inexact:
        return []
    return [
        f"{what}: {plural(len(inexact), 'prompt')}, first {inexact[0].prompt_id}, whose responses "
        "came as text that was tokenised again (exact = false): their tokens may differ from those "
        "that were sampled, so that influence is of responses with the same text"
    ]


def empty_response_notes(what: str, groups: Sequence[RolloutGroup]) -> list[str]:
    """How many judged responses have no token of the policy's, and so leave their groups."""
    judged = [r for group in groups for r in group.responses if r.reward_status == "ok"]
    empty = sum(response.tokens == 0 for response in judged)
    if not empty:
        return []
    return [
        f"{what}: {empty:,} of {plural(len(judged), 'judged response')} left out of their groups: "
        "no token of the policy's (empty, or loss_mask all 0)"
    ]


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
