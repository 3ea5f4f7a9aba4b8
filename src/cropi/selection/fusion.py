"""The paper's selection: reciprocal-rank fusion of the validation sets' rankings.

Each set ranks all scored prompts by cosine and keeps its top n; a prompt's fused score is the
sum of 1 / (c + rank) over the sets in whose top n it is (docs/method.md; c = 0 in the paper).
Ties are broken by prompt id.

Shape legend: V validation sets, P scored prompts.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cropi.errors import InputError
from cropi.estimation.noise import exceeds_noise, running_mean, with_pooled_errors
from cropi.plugins import plugin
from cropi.schema import InfluenceEstimate, Selection
from cropi.selection.strategy import (
    Scoring,
    SelectionContext,
    alphabetical_positions,
    shortfall,
    top_by_score,
)
from cropi.settings import Section

FusionConstant = Annotated[float, Field(ge=0, description="c in 1/(c + rank); 0 in the paper")]
LEAST_SHARE = 0.2
"""Least share of the wanted prompts, taken even if within noise: training on fewer overfits."""


@plugin("strategy", "ranking")
class Ranking:
    """The top by influence under each stage's own policy (the paper's), with our options."""

    class Settings(Section):
        """What goes beyond the paper; 0 everywhere gives the paper's selection."""

        fusion_constant: FusionConstant = 0.0
        noise_floor: Annotated[float, Field(ge=0)] = Field(
            3.0,
            description="leave out prompts whose influence is within this many standard "
            "deviations of noise, down to a fifth of the ratio; 0 (paper) fills the ratio",
        )
        memory: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.5,
            description="weight of earlier stages' influence in a running mean; 0 (paper): none",
        )

    scoring: Scoring = "stage"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.earlier = settings.memory > 0

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        estimate = running_mean(context.scored, context.earlier, self.settings.memory)
        constant, floor = self.settings.fusion_constant, self.settings.noise_floor
        return fuse(estimate, context.count, constant, floor)


@plugin("strategy", "one_shot")
class OneShot:
    """The paper's one-shot baseline: the start policy's influence decides every stage."""

    class Settings(Section):
        """How the rankings of several validation sets become one."""

        fusion_constant: FusionConstant = 0.0

    scoring: Scoring = "once"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets, as published: without memory or noise floor."""
        return fuse(context.scored, context.count, self.settings.fusion_constant)


def fuse(
    estimate: InfluenceEstimate, count: int, constant: float = 0.0, noise_floor: float = 0.0
) -> Selection:
    """Return the `count` prompts of highest fused score, with each set's rank (0 = unlisted).

    With a `noise_floor`, prompts whose cosines are all within that many standard errors are left
    out, as long as a fifth of `count` remains. Raises InputError if the constant or the floor is
    negative or not finite.
    """
    for what, value in (("fusion constant", constant), ("noise floor", noise_floor)):
        if not 0 <= value < math.inf:
            raise InputError(f"{what} {value} is not a finite number of at least 0; give one")
    scored = estimate.scored()
    positions = alphabetical_positions(scored.prompt_ids)
    ranks = {name: _ranks(mean, positions, count) for name, mean in scored.mean.items()}
    fused = _reciprocal_sum(np.stack(list(ranks.values())), constant)
    listed = int((fused > 0).sum())
    chosen = top_by_score(fused, positions, min(count, listed))
    selected = _apply_noise_floor(scored, chosen, count, noise_floor)
    negative = negative_influence(scored, selected)
    return Selection(
        prompt_ids=[scored.prompt_ids[index] for index in selected],
        scores=fused[selected],
        ranks={name: rank[selected] for name, rank in ranks.items()},
        negative=negative,
        notes=_notes(len(selected), len(chosen) - len(selected), negative, count),
    )


def _apply_noise_floor(
    scored: InfluenceEstimate, chosen: NDArray[np.int64], count: int, floor: float
) -> NDArray[np.int64]:
    """The chosen prompts above noise, filled up with the best others to the least share."""
    if floor <= 0:
        return chosen
    clear = exceeds_noise(with_pooled_errors(scored), floor)[chosen]
    missing = max(0, max(1, int(LEAST_SHARE * count)) - int(clear.sum()))
    clear[np.flatnonzero(~clear)[:missing]] = True
    return chosen[clear]


def _reciprocal_sum(ranks_VP: NDArray[np.int32], constant: float) -> NDArray[np.float64]:
    """Sum of 1 / (constant + rank) over the sets that list a prompt.

    Summed in the order of size, not of the sets: ranks (1, 2, 3) and (3, 1, 2) must tie exactly.
    """
    terms_VP = np.divide(1.0, constant + ranks_VP, out=np.zeros(ranks_VP.shape), where=ranks_VP > 0)
    return np.asarray(np.sort(terms_VP, axis=0).sum(axis=0))


def _ranks(
    mean: NDArray[np.float32], positions: NDArray[np.int64], count: int
) -> NDArray[np.int32]:
    """Rank of each prompt in one set's top `count`, from 1; 0 outside it."""
    order = top_by_score(mean, positions, count)
    ranks = np.zeros(len(mean), dtype=np.int32)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def negative_influence(scored: InfluenceEstimate, chosen: NDArray[np.int64]) -> int:
    """How many of the chosen help no validation set: every cosine is below zero."""
    best = np.max([mean[chosen] for mean in scored.mean.values()], axis=0)
    return int((best < 0).sum())


def _notes(selected: int, dropped: int, negative: int, count: int) -> list[str]:
    notes = shortfall(selected + dropped, count, "prompts are informative")
    if dropped:
        notes.append(f"{dropped} of {count} left out: their influence is within noise")
    if negative:
        notes.append(f"{negative} of the {selected} selected have negative influence on every set")
    return notes
