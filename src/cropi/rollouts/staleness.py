"""How far a policy has moved from the one that sampled the rollouts.

With w = pi(y|s) / beta(y|s) the weight of a whole response and rho_t its factor at token t:

    ESS = (sum w)^2 / sum w^2 / K            effective share of a prompt's K responses
    KL(beta || pi) per token, k3             mean over tokens of rho - 1 - log rho (never negative)
    KL(beta || pi) per response, plain mean  mean over responses of -log w

k3 (Schulman, "Approximating KL divergence", 2020) has the mean of -log rho and a smaller variance;
over whole responses it would depend on the largest weight alone, hence the plain mean. ESS measures
only how unequal the weights are: a policy that hardly produces any of a prompt's responses gives
them equal, tiny weights. The mean weight, 1 in expectation, detects that.

This module maps arrays to plain values; `gradients.logprobs` does the forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.estimation.intervals import Interval, mean_interval, share_interval
from cropi.progress import ProgressCallback
from cropi.rollouts.number_checks import require_log_ratios
from cropi.schema import RolloutGroup
from cropi.short_repr import ShortRepr
from cropi.text import plural

if TYPE_CHECKING:
    from torch import nn

STALE_ESS = 0.5
"""Below this effective share of its responses, a prompt is worth sampling again."""
LEFT_BEHIND = 0.1
"""Below this mean weight, the policy hardly produces any of a prompt's responses."""
NARROW, WIDE = (0.8, 1.25), (0.5, 2.0)
"""Ranges of token ratios: about PPO's clip range, and a factor of two."""
QUANTILES = (0.01, 0.5, 0.99)
FRESH_BELOW, STALE_ABOVE = 0.05, 0.5
"""Shares of stale prompts below which rollouts are fresh, and above which all are stale."""
MOST_NATS = 30.0
"""Log-ratios of tokens beyond this, either way, count as this: e^30 is a ratio of 1e13."""
BINS = 61
SPAN = 3.0
"""The histogram covers log2 of the token ratio from -SPAN to SPAN; the outer bins hold the rest."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PromptStaleness:
    """One prompt: `ess` of response weights and `ess_token` of token ratios in (0, 1].

    `ess` is None with a single response. `kl_token` (k3) and `kl_response` (plain mean) are in
    nats, `mean_weight` is the mean of the responses' weights, and `outside` is the share of tokens
    outside NARROW. `out_of_range`: a token's log-ratio was cut to MOST_NATS.
    """

    prompt_id: str
    responses: int
    tokens: int
    informative: bool
    ess: float | None
    ess_token: float
    kl_token: float
    kl_response: float
    mean_weight: float
    outside: float
    stale: bool
    out_of_range: bool = False


@dataclass(frozen=True, repr=False)
class Tails(ShortRepr):
    """Ratios pi/beta of all tokens: the shares outside NARROW and WIDE, and the QUANTILES."""

    outside_narrow: float
    outside_wide: float
    quantiles: dict[str, float]


@dataclass(frozen=True, repr=False)
class Staleness(ShortRepr):
    """Rollouts compared with a policy; `prompts` are all those with a usable response.

    `ess` and `ess_token` pool all responses and tokens; `prompt_ess` is the mean over prompts and
    `stale` the share to sample again, with 95% intervals over prompts. `histogram` counts tokens
    by log2 ratio (see BINS).
    """

    also_shown = ("verdict",)

    prompts: list[PromptStaleness]
    responses: int
    tokens: int
    ess: float
    ess_token: float
    prompt_ess: Interval
    stale: Interval
    kl_token: Interval
    kl_response: Interval
    tails: Tails
    histogram: list[int]
    notes: list[str] = field(default_factory=list)

    @property
    def refresh(self) -> list[str]:
        """Ids of the prompts to sample again, worst first."""
        return [p.prompt_id for p in self.worst if p.stale]

    @property
    def worst(self) -> list[PromptStaleness]:
        """All prompts, those with the smallest effective share first."""
        return sorted(
            self.prompts, key=lambda p: (not p.stale, _one_if_none(p.ess), -p.kl_response)
        )

    @property
    def level(self) -> str:
        """`fresh`, `partly stale` or `stale`."""
        if self.stale.mean < FRESH_BELOW:
            return "fresh"
        return "partly stale" if self.stale.mean < STALE_ABOVE else "stale"

    @property
    def verdict(self) -> str:
        """What to do, in one sentence."""
        count, total = len(self.refresh), len(self.prompts)
        mean = f"{self.prompt_ess.mean:.0%}"
        average = f"the average effective share of a prompt's responses is {mean}"
        if self.level == "fresh":
            below = f"{count} of {total:,} prompts" if count else f"none of the {total:,} prompts"
            return (
                f"Fresh: {average}, and {below} fell below {STALE_ESS:.0%}; use them as they are."
            )
        if self.level == "partly stale":
            share = f"{self.stale.mean:.0%} of {total:,}"
            return f"Partly stale: {average}; sample the {count:,} stale prompts ({share}) again."
        share = f"{count:,} of {total:,} prompts are stale"
        return f"Stale: {average} and {share}; sample the whole pool again with this policy."


def staleness_under(
    model: nn.Module,
    rollouts: Sequence[RolloutGroup],
    batch_tokens: int | None = None,
    progress: ProgressCallback | None = None,
) -> Staleness:
    """Measure how far `model` has moved from the policy that sampled `rollouts`.

    Every usable response counts, those of uninformative prompts too; `batch_tokens` bounds a
    forward pass, and `progress` is called with (prompts done, prompts in all). Raises InputError if
    no response is usable, or the model cannot have sampled them.
    """
    from cropi.gradients.logprobs import LogprobReader, read_logprobs

    groups = [g for g in rollouts if g.usable]
    if not groups:
        raise InputError(
            "no rollout has a usable response (judged, and not empty); give rollouts whose rewards "
            "were computed"
        )
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        if progress:
            progress(done, len(groups))

    reader = LogprobReader(model, batch_tokens)
    return measure_staleness(groups, read_logprobs(reader, groups, advance))


def measure_staleness(
    groups: Sequence[RolloutGroup], logprobs: Sequence[Sequence[Values]]
) -> Staleness:
    """Compare the policy's log-probs [group][usable response][token] with the stored ones.

    Every group has a usable response. Raises InputError naming a prompt with a log-prob of NaN, or
    with log-probs of another temperature than its responses'.
    """
    require_log_ratios("the rollouts", groups)
    ratios = [
        [
            _bounded((current - r.logprobs.astype(np.float64))[r.sampled])
            for current, r in zip(group_logprobs, group.usable, strict=True)
        ]
        for group_logprobs, group in zip(logprobs, groups, strict=True)
    ]
    for group, ratios_of in zip(groups, ratios, strict=True):
        if any(np.isnan(ratio).any() for ratio in ratios_of):
            raise InputError(
                f"prompt {group.prompt_id}: a log-prob is NaN, the sampler's or the policy's; "
                "check the checkpoint's weights and the rollouts"
            )
    prompts = [_prompt(group, ratios_of) for group, ratios_of in zip(groups, ratios, strict=True)]
    tokens = np.concatenate([ratio for ratios_of in ratios for ratio in ratios_of])
    responses = np.array([ratio.sum() for ratios_of in ratios for ratio in ratios_of])
    # A single response has no spread, so its prompt is left out of statistics of the spread.
    measured = [p for p in prompts if p.ess is not None]
    return Staleness(
        prompts=prompts,
        responses=len(responses),
        tokens=len(tokens),
        ess=effective_share(responses),
        ess_token=effective_share(tokens),
        prompt_ess=mean_interval([p.ess for p in measured if p.ess is not None]),
        stale=share_interval(sum(p.stale for p in measured), len(measured)),
        kl_token=mean_interval([p.kl_token for p in prompts]),
        kl_response=mean_interval([p.kl_response for p in prompts]),
        tails=_tails(tokens),
        histogram=_histogram(tokens),
        notes=_notes(groups, prompts, len(prompts) - len(measured)),
    )


def _bounded(log_ratios: Values) -> Values:
    """Log-ratios of tokens that can be exponentiated and averaged; NaN stays NaN."""
    return np.clip(log_ratios, -MOST_NATS, MOST_NATS)


def effective_share(log_weights: Values) -> float:
    """(sum w)^2 / sum w^2 / n of weights given by their logs; safe for any magnitude."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))


def k3(log_ratio: Values) -> Values:
    """The estimator rho - 1 - log rho of KL(beta || pi), one value per token."""
    return np.expm1(np.minimum(log_ratio, 700.0)) - log_ratio


def _prompt(group: RolloutGroup, log_ratios: Sequence[Values]) -> PromptStaleness:
    tokens = np.concatenate(log_ratios)
    sums = np.array([r.sum() for r in log_ratios])
    ess = effective_share(sums) if len(sums) > 1 else None
    mean_weight = float(np.exp(np.minimum(sums, 700.0)).mean())
    out_of_range = bool((np.abs(tokens) >= MOST_NATS).any())
    left_behind = mean_weight < LEFT_BEHIND and not group.logprobs_are_cut
    return PromptStaleness(
        prompt_id=group.prompt_id,
        responses=len(sums),
        tokens=len(tokens),
        informative=group.informative,
        ess=ess,
        ess_token=effective_share(tokens),
        kl_token=float(k3(tokens).mean()),
        kl_response=float(-sums.mean()),
        mean_weight=mean_weight,
        outside=_outside(tokens, NARROW),
        stale=ess is not None and (ess < STALE_ESS or left_behind or out_of_range),
        out_of_range=out_of_range,
    )


def _one_if_none(ess: float | None) -> float:
    return 1.0 if ess is None else ess


def _outside(log_ratio: Values, bounds: tuple[float, float]) -> float:
    low, high = (math.log(bound) for bound in bounds)
    return float(((log_ratio < low) | (log_ratio > high)).mean())


def _tails(log_ratio: Values) -> Tails:
    values = np.exp(np.quantile(log_ratio, QUANTILES))
    quantiles = {f"{q:.0%}": float(v) for q, v in zip(QUANTILES, values, strict=True)}
    return Tails(_outside(log_ratio, NARROW), _outside(log_ratio, WIDE), quantiles)


def _histogram(log_ratio: Values) -> list[int]:
    inside = np.clip(log_ratio / math.log(2), -SPAN, SPAN)
    counts, _ = np.histogram(inside, bins=BINS, range=(-SPAN, SPAN))
    return [int(n) for n in counts]


def _notes(
    groups: Sequence[RolloutGroup], prompts: Sequence[PromptStaleness], single: int
) -> list[str]:
    """Return what makes the figures less reliable."""
    notes = []
    if ids := [p.prompt_id for p in prompts if p.out_of_range]:
        notes.append(
            f"{plural(len(ids), 'prompt')} (first {ids[0]}) with a token whose ratio is beyond "
            f"e^{MOST_NATS:.0f} (a log-prob of minus infinity, say), counted as that: check their "
            "log-probs, or sample them again"
        )
    if cut := sum(g.logprobs_are_cut for g in groups):
        notes.append(
            f"{plural(cut, 'prompt')} sampled with top_p or top_k: their log-probs are of the cut "
            "distribution, so ratios lie below 1 and KL above 0 even under the same policy"
        )
    if inexact := sum(not g.exact for g in groups):
        notes.append(
            f"{plural(inexact, 'prompt')} that came as text (exact = false): tokens and log-probs "
            "may not be the sampler's"
        )
    if single:
        notes.append(
            f"{plural(single, 'prompt')} with one usable response, which has no effective share"
        )
    return notes
