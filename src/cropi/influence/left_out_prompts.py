"""Prompts that are left out of scores and targets, and sentences that name them.

NumPy alone, so that scoring stored features loads no model code.

Shape legend: N informative prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.rollouts.number_checks import (
    empty_response_notes,
    inexact_notes,
    log_ratio_notes,
    require_log_ratios,
    require_sound_numbers,
)
from cropi.schema import (
    LEFT_OUT,
    RATIO_OUT_OF_RANGE,
    REWARDS_OUT_OF_RANGE,
    SCORED,
    TOO_FEW_RESPONSES,
    UNSCORED,
    ZERO_GRADIENT,
    RolloutGroup,
)
from cropi.text import plural, shortened

if TYPE_CHECKING:
    from cropi.gradients.pass_record import RatioSummary
    from cropi.gradients.settings import ObjectiveConfig

SMALLEST_NORM = 1e-13
"""Norms below this are zero: the squares of their coordinates are below float32's range."""

FAR_POLICY = 0.5
"""Nats per token between sampler and policy from which on a warning says so. On pocket it is .01
after one stage of training and .04 after four."""

MEAN_RATIOS = (0.9, 1.1)
MOST_DEVIATION = 5.0
"""A mean ratio outside of these, by more than so many standard errors, is no sampler's."""
OWN_DISTANCE, OWN_PROMPT_DISTANCE = 0.005, 0.2
"""Nats per token from which on a policy cannot have sampled a set, or one prompt, as it is stored.
Weights in bf16 instead of fp32 make .0001 on pocket and .0013 on SmolLM2-135M, a temperature of 1
that is stated as .7 makes .027 and .18, and responses to another prompt 5 to 10 and .9."""
LOWEST_KL, FEWEST_TOKENS = -0.1, 100
"""Nats per token; an estimate of what cannot be negative has noise, but of so many tokens less."""

SHOWN = 5
"""Prompts that a sentence names; the statuses name them all."""

REMEDIES: Mapping[str, str] = {
    RATIO_OUT_OF_RANGE: "policy and sampler differ by more than e^30 there; check the log-probs, "
    "or sample these prompts again",
    REWARDS_OUT_OF_RANGE: "their advantages are outside 1e-12 to 1e12; rescale the rewards",
    ZERO_GRADIENT: "the gradients of their responses cancel, or all of them are clipped; sample "
    "more responses if there are many",
}


@dataclass(frozen=True)
class InformativeGroups:
    """Informative prompts of a set, and how many others there are, by reason.

    `notes` are warnings.
    """

    groups: list[RolloutGroup]
    skipped: dict[str, int]
    notes: list[str] = field(default_factory=list)


def keep_informative(groups: Sequence[RolloutGroup]) -> InformativeGroups:
    """Keep the prompts that have a gradient; count the others by reason."""
    counts = Counter(group.score_status for group in groups)
    skipped = {reason: counts[reason] for reason in UNSCORED if counts[reason]}
    return InformativeGroups([group for group in groups if group.informative], skipped)


def require_informative(
    what: str, groups: Sequence[RolloutGroup], objective: ObjectiveConfig
) -> InformativeGroups:
    """Keep the prompts that have a gradient, for an objective.

    Raises InputError if `what` has none, or has numbers that nothing can be computed from.
    """
    require_sound_numbers(groups)
    informative = keep_informative(groups)
    if not informative.groups:
        counts = informative.skipped.items()
        reasons = ", ".join(f"{n} with {reason}" for reason, n in counts) or "no prompt at all"
        raise InputError(
            f"{what} has no informative prompt among {len(groups)} ({reasons}); it needs a prompt "
            f"with both better and worse responses: {_remedy(informative.skipped)}"
        )
    notes = [*empty_response_notes(what, groups), *inexact_notes(what, informative.groups)]
    if objective.uses_ratios:
        require_log_ratios(what, informative.groups)
        notes += log_ratio_notes(what, informative.groups)
    return replace(informative, notes=notes)


def informative_targets(
    targets: Mapping[str, Sequence[RolloutGroup]], objective: ObjectiveConfig
) -> dict[str, InformativeGroups]:
    """Of every validation set, the prompts with a gradient. Raises as `require_informative`."""
    return {
        name: require_informative(f"validation set {name}", groups, objective)
        for name, groups in targets.items()
    }


def _remedy(skipped: Mapping[str, int]) -> str:
    """What gives a set a prompt with a gradient, where it was `skipped` for these reasons alone."""
    if set(skipped) == {TOO_FEW_RESPONSES}:
        return (
            "judge responses that have no reward, and sample several of each prompt; in place of "
            "rollouts with one response each, such as those of an evaluation, give their prompts"
        )
    return "add prompts, sample more responses, or choose tasks the policy sometimes solves"


def gradient_statuses(statuses: Sequence[str], norms_N: NDArray[np.floating]) -> list[str]:
    """The statuses of a pass [N], where "scored" needs a gradient with a direction."""
    zero_N = norms_N < SMALLEST_NORM
    return [
        ZERO_GRADIENT if status == SCORED and zero else status
        for status, zero in zip(statuses, zero_N.tolist(), strict=True)
    ]


def left_out_notes(what: str, prompt_ids: Sequence[str], statuses: Sequence[str]) -> list[str]:
    """A sentence per reason for which prompts of `what` were left out, with the first names."""
    notes = []
    for reason in LEFT_OUT:
        names = [i for i, status in zip(prompt_ids, statuses, strict=True) if status == reason]
        if names:
            verb = "are" if len(names) > 1 else "is"
            notes.append(
                f"{what}: {plural(len(names), 'prompt')} {verb} left out for {reason} "
                f"({named(names)}): {REMEDIES[reason]}"
            )
    return notes


def named(prompt_ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(prompt_ids) - SHOWN:,} more" if len(prompt_ids) > SHOWN else ""
    return ", ".join(shortened(i, 60) for i in prompt_ids[:SHOWN]) + more


def require_some_in_range(what: str, prompt_ids: Sequence[str], statuses: Sequence[str]) -> None:
    """Raise InputError if numbers out of range have left out every prompt of `what`."""
    notes = left_out_notes(what, prompt_ids, statuses)
    if SCORED not in statuses:
        raise InputError(f"no prompt has a usable gradient: {'; '.join(notes)}")


def require_finite_norms(
    what: str, prompt_ids: Sequence[str], norms_N: NDArray[np.floating]
) -> None:
    """Raise InputError naming the prompts of `what` whose gradients are NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(norms_N)).tolist()
    if bad:
        raise InputError(
            f"{what}: {len(bad)} of {len(norms_N)} gradients are not finite (NaN or infinity), "
            f"those of {named([prompt_ids[index] for index in bad])}; check the checkpoint's "
            "weights and the rollouts' log-probs, or compute in float32"
        )


def extreme_ratio_notes(what: str, prompt_ids: Sequence[str]) -> list[str]:
    """A warning about prompts that have one ratio above e^10, but none out of range."""
    if not prompt_ids:
        return []
    return [
        f"{what}: {plural(len(prompt_ids), 'prompt')} with a token that this policy finds e^10 "
        f"times as likely as its sampler did ({named(prompt_ids)}), so that one token decides the "
        "gradient; check the log-probs, or sample again"
    ]


def own_sampler_notes(
    what: str, groups: Sequence[RolloutGroup], distances_P: NDArray[np.float64]
) -> list[str]:
    """A warning if a policy differs from itself as the sampler of the rollouts of `what`.

    `distances_P` are NaN for prompts that it did not sample. Either a few prompts differ, whose
    responses may be those of others, or all of them do a little, as a wrong temperature has it.
    """
    own_P = ~np.isnan(distances_P)
    far_P = own_P & (distances_P >= OWN_PROMPT_DISTANCE)
    tokens_P = np.array([sum(r.tokens for r in group.usable) for group in groups])
    start = f"{what}: by policy_revision this policy sampled "
    others_differ = _mean(distances_P, tokens_P, own_P & ~far_P) >= OWN_DISTANCE
    if far_P.any() and not others_differ and not (far_P == own_P).all():
        ids = [groups[index].prompt_id for index in np.flatnonzero(far_P).tolist()]
        return [
            f"{start}{plural(int(own_P.sum()), 'prompt')}, and gives the responses to {len(ids):,} "
            f"of them ({named(ids)}) other log-probs than are stored "
            f"({_mean(distances_P, tokens_P, far_P):.2g} nats per token away): they may be "
            "responses to other prompts, or log-probs of other responses; sample them again"
        ]
    distance = _mean(distances_P, tokens_P, own_P)
    if distance < OWN_DISTANCE or tokens_P[own_P].sum() < FEWEST_TOKENS:
        return []
    sampled = [groups[index] for index in np.flatnonzero(own_P).tolist()]
    temperatures = sorted({group.sampling.temperature for group in sampled})
    stated = ", ".join(f"{each:g}" for each in temperatures)
    return [
        f"{start}the responses, and gives them other log-probs than are stored ({distance:.2g} "
        f"nats per token away, and rounding makes less than {OWN_DISTANCE:g}): the stated "
        f"temperature ({stated}) may not be that of sampling, or the responses those to other "
        "prompts; correct the rollouts, or sample again"
    ]


def _mean(
    values_P: NDArray[np.float64], tokens_P: NDArray[np.int64], chosen_P: NDArray[np.bool_]
) -> float:
    """The mean over the tokens of the chosen prompts; 0 of none."""
    tokens = tokens_P[chosen_P]
    return float(values_P[chosen_P] @ tokens / tokens.sum()) if len(tokens) else 0.0


def distance_notes(what: str, ratios: RatioSummary, averages_one: bool) -> list[str]:
    """A warning if the policy is far from the sampler of the rollouts of `what`.

    Or if nobody can have sampled them with these log-probs: `averages_one` says whether ratios
    have to, which they have not where the sampler left out the tail or the objective has none.
    """
    distance = max(ratios.kl, ratios.k3)
    if distance >= FAR_POLICY:
        return [
            f"{what}: the policy is far from the one that sampled the rollouts ({distance:.2g} "
            "nats per token, effective share of the tokens "
            f"{ratios.effective_share:.1%}), so their influence says little about it; check that "
            "model, tokenizer, temperature and log-probs are the sampler's, or sample again with "
            "this policy"
        ]
    low, high = MEAN_RATIOS
    surely_negative = ratios.kl < LOWEST_KL and ratios.tokens >= FEWEST_TOKENS
    off = not low <= ratios.mean_ratio <= high and abs(ratios.deviation) > MOST_DEVIATION
    if not averages_one or not (off or surely_negative):
        return []
    return [
        f"{what}: the log-probs cannot be those that the tokens were sampled with (ratios of "
        f"policy to sampler average {ratios.mean_ratio:.2f}, and 1 is expected of any policy), so "
        "influence is wrong; store natural logs, one for each token in its place, at the "
        "temperature of sampling, or score without ratios (objective.ratio=none)"
    ]
