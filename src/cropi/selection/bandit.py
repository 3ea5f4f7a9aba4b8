"""A bandit over sources, or over clusters of prompts: a check that influence adds something to it.

Shape legend: R rounds of sampling, oldest first, P prompts of the pool, A arms, F features.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cropi.errors import InputError
from cropi.plugins import plugin
from cropi.rollouts.statistics import PassHistory
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, history_of, select_top
from cropi.settings import Count, Section
from cropi.text import shown

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ROUNDS = 50
"""Most updates of the clusters' means; they settle sooner."""


@plugin("strategy", "bandit")
class Bandit:
    """A bandit over sources: more prompts from those whose responses differ most in reward.

    An arm's value is a running mean, round by round, of the size of its prompts' advantages,
    2 sqrt(p (1 - p)) for a pass rate p, and a stage is drawn from the arms in proportion to
    exp(value / temperature): the curriculum of SEC (arXiv 2505.14970), stage by stage.
    """

    class Settings(Section):
        """What the arms are, and how greedily they are drawn from."""

        clusters: Count | None = Field(
            None,
            description="draw from this many clusters of the prompts, by the policy's hidden "
            "states, instead of from sources",
        )
        learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
            0.5, description="weight of a new round in an arm's value"
        )
        temperature: Annotated[float, Field(gt=0)] = Field(
            0.2, description="higher: draw from all arms more evenly"
        )

    scoring: Scoring = "never"
    history = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hidden_states = settings.clusters is not None

    def select(self, context: SelectionContext) -> Selection:
        """Draw arms by their values, and prompts of an arm alike.

        Raises InputError if all prompts are of one source.
        """
        arm_P = self._arms(context)
        values_A = arm_values(history_of(context, "bandit"), arm_P, self.settings.learning_rate)
        chances_A = np.exp((values_A - values_A.max()) / self.settings.temperature)
        logs_P = np.log(np.maximum(chances_A / np.bincount(arm_P), 1e-300))[arm_P]
        noise_P = np.random.default_rng(context.seed).gumbel(size=len(logs_P))
        return select_top(context, logs_P + noise_P)

    def _arms(self, context: SelectionContext) -> Indices:
        """The arm [P] of each prompt."""
        if self.settings.clusters is not None:
            states_LPF = context.hidden_states
            assert states_LPF is not None, "the strategy needs hidden states and was given none"
            middle_PF = states_LPF[len(states_LPF) // 2].astype(np.float64)
            return nearest_means(middle_PF, self.settings.clusters, context.seed)
        names, arm_P = np.unique(np.array(context.sources), return_inverse=True)
        if len(names) < 2:
            raise InputError(_one_arm([*map(str, names)]))
        return arm_P


def _one_arm(names: list[str]) -> str:
    """What to do where there is nothing to choose between."""
    if names == [""] or not names:
        return (
            "strategy bandit draws from sources, and those of the prompts are not known here; a "
            "run knows them, and in Python give sources"
        )
    return (
        f"strategy bandit draws from sources, and the pool has only {shown(names[0], 60)}; set "
        "strategy.clusters, e.g. to 16, to draw from clusters of similar prompts"
    )


def arm_values(history: PassHistory, arm_P: Indices, learning_rate: float) -> Array:
    """The value [A] of each arm; one that no round sampled has the mean of the others'."""
    values_A = np.full(arm_P.max() + 1, np.nan)
    for rates_P in history.rates:
        sampled_P = ~np.isnan(rates_P)
        gains_P = 2 * np.sqrt(rates_P * (1 - rates_P))[sampled_P]
        counts_A = np.bincount(arm_P[sampled_P], minlength=len(values_A))
        sums_A = np.bincount(arm_P[sampled_P], gains_P, minlength=len(values_A))
        means_A = np.divide(sums_A, counts_A, out=values_A.copy(), where=counts_A > 0)
        moved_A = values_A + learning_rate * (means_A - values_A)
        values_A = np.where(np.isnan(values_A), means_A, moved_A)
    known_A = values_A[~np.isnan(values_A)]
    return np.nan_to_num(values_A, nan=float(known_A.mean()) if len(known_A) else 0.0)


def nearest_means(features_PF: Array, count: int, seed: int) -> Indices:
    """k-means: the cluster [P] of each row, begun at rows far from each other (k-means++)."""
    means_AF, draw = features_PF[:0], np.random.default_rng(seed)
    distances_P = np.ones(len(features_PF))
    while len(means_AF) < min(count, len(features_PF)) and distances_P.sum() > 0:
        row = draw.choice(len(features_PF), p=distances_P / distances_P.sum())
        means_AF = np.vstack([means_AF, features_PF[row]])
        distances_P = _squares(features_PF, means_AF).min(1)
    for _ in range(ROUNDS):
        cluster_P = _squares(features_PF, means_AF).argmin(1)
        used = np.unique(cluster_P)
        before, means_AF = means_AF, np.array([features_PF[cluster_P == a].mean(0) for a in used])
        if before.shape == means_AF.shape and np.allclose(before, means_AF):
            break
    return np.asarray(_squares(features_PF, means_AF).argmin(1))


def _squares(features_PF: Array, means_AF: Array) -> Array:
    """Squared distances [P, A]."""
    square_P1 = (features_PF**2).sum(1, keepdims=True)
    cross_PA = square_P1 + (means_AF**2).sum(1) - 2 * features_PF @ means_AF.T
    return np.asarray(cross_PA.clip(min=0))
