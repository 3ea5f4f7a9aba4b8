"""Strategies that need no gradient but remember: the pass rates of every round of sampling so far.

Training's own groups are rollouts that are paid for, so that from the second stage on these know
more than the start policy's pass rates (`SelectionContext.history`). Each follows a published
method for choosing prompts at every step; here it chooses a stage.

Shape legend: R rounds of sampling, oldest first, P prompts of the pool, S states.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cropi.plugins import plugin
from cropi.rollouts.statistics import PassHistory
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, history_of, select_top
from cropi.settings import Section

Array = NDArray[np.float64]

Decay = Annotated[float, Field(ge=0, le=1)]


class BeliefSettings(Section):
    """How fast earlier rounds are forgotten."""

    decay: Decay = Field(
        0.5, description="share of earlier evidence that is kept when a round is added"
    )


@plugin("strategy", "mopps")
class Mopps:
    """Thompson sampling of pass rates: those whose draw from the posterior is nearest to 1/2.

    Each prompt's pass rate has a Beta posterior, uniform at first, of which every round that
    sampled the prompt keeps the share `decay`, as in MoPPS (arXiv 2507.04632), whose values these
    are. The start policy's rollouts are the first round.
    """

    Settings = BeliefSettings
    scoring: Scoring = "never"
    history = True

    def __init__(self, settings: BeliefSettings) -> None:
        self.settings = settings

    def select(self, context: SelectionContext) -> Selection:
        """Draw a pass rate for each prompt, and rank by its distance to 1/2."""
        alpha_P, beta_P = beliefs(history_of(context, "mopps"), self.settings.decay)
        rates_P = np.random.default_rng(context.seed).beta(alpha_P, beta_P)
        return select_top(context, -abs(rates_P - 0.5))


@plugin("strategy", "information")
class Information:
    """Expected information: how much a group would lower the variance of a prompt's pass rate.

    With a Beta(a, b) posterior of mean m, n more responses lower its variance on average by

        m (1 - m) * n / ((a + b + 1) (a + b + n)):

    difficulty times lack of evidence. InSight (arXiv 2603.01907) splits information in this way
    and multiplies it by a further weight of the mean, which is left out here.
    """

    Settings = BeliefSettings
    scoring: Scoring = "never"
    history = True

    def __init__(self, settings: BeliefSettings) -> None:
        self.settings = settings

    def select(self, context: SelectionContext) -> Selection:
        """Rank by the expected drop; ties are broken at random."""
        alpha_P, beta_P = beliefs(history_of(context, "information"), self.settings.decay)
        total_P = alpha_P + beta_P
        difficulty_P = alpha_P * beta_P / total_P**2
        evidence_P = context.group_size / ((total_P + 1) * (total_P + context.group_size))
        drop_P = difficulty_P * evidence_P
        return select_top(context, drop_P)


def beliefs(history: PassHistory, decay: float) -> tuple[Array, Array]:
    """Parameters alpha and beta [P] of each prompt's Beta posterior, from the uniform prior.

    A round that sampled a prompt moves what was known of it towards the prior first.
    """
    alpha_P, beta_P = np.ones((2, history.passes.shape[1]))
    for passes_P, responses_P in zip(history.passes, history.responses, strict=True):
        sampled_P, failures_P = responses_P > 0, responses_P - passes_P
        alpha_P = np.where(sampled_P, decay * alpha_P + 1 - decay + passes_P, alpha_P)
        beta_P = np.where(sampled_P, decay * beta_P + 1 - decay + failures_P, beta_P)
    return alpha_P, beta_P


@plugin("strategy", "dps")
class Dps:
    """The prompts most likely to be partly solved next, by a hidden Markov model of each.

    A prompt is unsolved, partly solved or solved; a round that samples it shows which. The chances
    of going from one state to another have a Dirichlet posterior for each prompt, uniform at first,
    which every round updates with the transition it saw (DPS, arXiv 2603.10887).
    """

    class Settings(Section):
        """How fast transitions are forgotten."""

        decay: Decay = Field(
            0.7, description="share of earlier evidence that is kept when a round is added"
        )

    scoring: Scoring = "never"
    history = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def select(self, context: SelectionContext) -> Selection:
        """Rank by the predicted chance of the middle state; ties are broken at random."""
        chances_PS = next_states(history_of(context, "dps"), self.settings.decay)
        return select_top(context, chances_PS[:, 1])


def next_states(history: PassHistory, decay: float) -> Array:
    """Chances [P, S] that each prompt is unsolved, partly solved or solved in the next round."""
    count = history.passes.shape[1]
    state_PS = np.full((count, 3), 1 / 3)
    transitions_PSS = np.ones((count, 3, 3))  # to, from
    for passes_P, responses_P in zip(history.passes, history.responses, strict=True):
        sampled_P1 = (responses_P > 0)[:, None]
        known_P = np.where(passes_P <= 0, 0, np.where(passes_P >= responses_P, 2, 1))
        seen_PS = np.where(sampled_P1, np.eye(3)[known_P], _predicted(transitions_PSS, state_PS))
        moved_PSS = seen_PS[:, :, None] * state_PS[:, None, :] * _chances(transitions_PSS)
        moved_PSS *= sampled_P1[:, None] / moved_PSS.sum((1, 2), keepdims=True)
        transitions_PSS = decay * transitions_PSS + (1 - decay) + moved_PSS
        state_PS = seen_PS
    return _predicted(transitions_PSS, state_PS)


def _chances(transitions_PSS: Array) -> Array:
    return np.asarray(transitions_PSS / transitions_PSS.sum(axis=1, keepdims=True))


def _predicted(transitions_PSS: Array, state_PS: Array) -> Array:
    return np.asarray(np.einsum("pij,pj->pi", _chances(transitions_PSS), state_PS))


@plugin("strategy", "lze")
class Lze:
    """Learning-zone energy: hard at first, half solved now, and changing.

    With p the pass rate in the last round that sampled the prompt, p0 in the first, and p' a
    running mean (weight .9) of those between, the energy of LZE (arXiv 2605.17003) is

        max(1 - p0, .05) * 4 p (1 - p) * (1 + .3 min(2 |p - p'|, 1)),

    to which a little Gumbel noise is added, as in its code. A prompt without energy is not chosen.
    """

    scoring: Scoring = "never"
    history = True
    MEMORY, EASIEST, MOMENTUM, NOISE = 0.9, 0.05, 0.3, 0.05

    def select(self, context: SelectionContext) -> Selection:
        """Rank by energy with noise."""
        energy_P = self.energy(history_of(context, "lze"))
        alive_P = energy_P[energy_P > 0]
        spread = max(float(alive_P.max() - alive_P.min()), 0.01) if len(alive_P) else 0.0
        noise_P = np.random.default_rng(context.seed).gumbel(size=len(energy_P))
        return select_top(context, energy_P + self.NOISE * spread * noise_P, energy_P > 0)

    def energy(self, history: PassHistory) -> Array:
        """The energy [P]; 0 for a prompt that was never sampled."""
        first_P, last_P, mean_P, before_P = np.full((4, history.passes.shape[1]), np.nan)
        for rates_P in history.rates:
            new_P, sampled_P = np.isnan(first_P), ~np.isnan(rates_P)
            first_P = np.where(new_P, rates_P, first_P)
            mean_P = np.where(new_P, rates_P, mean_P)
            before_P = np.where(sampled_P, mean_P, before_P)
            moved_P = self.MEMORY * mean_P + (1 - self.MEMORY) * rates_P
            mean_P = np.where(sampled_P, moved_P, mean_P)
            last_P = np.where(sampled_P, rates_P, last_P)
        momentum_P = np.minimum(2 * abs(last_P - before_P), 1)
        zone_P = 4 * last_P * (1 - last_P)
        energy_P = np.maximum(1 - first_P, self.EASIEST) * zone_P * (1 + self.MOMENTUM * momentum_P)
        return np.asarray(np.nan_to_num(energy_P))
