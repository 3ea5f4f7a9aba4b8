"""A pool that is scored in portions, so that no more is measured than is needed.

What every portion's prompts are compared with is made once. Whitening compares prompts with each
other, so that influence is of all portions together.

Shape legend: P informative prompts, V targets, D dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cropi.gradients.consumers import Directions
from cropi.influence.cosines import Influence, ResponseInfluence, pool_estimate
from cropi.influence.left_out_prompts import InformativeGroups, require_informative
from cropi.influence.targets import TargetReliability
from cropi.influence.whitening import whitened, whitening_sample
from cropi.schema import RolloutGroup

if TYPE_CHECKING:
    from cropi.influence.pool_scorer import PoolScorer

Groups = Sequence[RolloutGroup]


@dataclass(frozen=True)
class TargetDirections:
    """One direction per target, dense or sketched (float64 [V, D]), and how reliable each is.

    `lengths` are their L2 norms [V]; `values` None means that workers elsewhere hold them.
    """

    values: Directions | NDArray[np.float64] | None
    lengths: list[float]
    reliability: dict[str, TargetReliability]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PoolScores:
    """What was measured of the informative prompts [P]; `statuses` say which cosines count.

    `rewards_P2` are their mean rewards under the policy, and the effective shares of responses.
    """

    cosines_PV: NDArray[np.float64]
    norms_P: NDArray[np.float64]
    rewards_P2: NDArray[np.float64]
    statuses: list[str]
    notes: list[str]
    responses: ResponseInfluence | None = None
    sketches_PD: NDArray[np.floating] | None = None

    def reordered(self, places: Sequence[int]) -> PoolScores:
        """The prompts at these places, without what their responses bring."""
        return PoolScores(
            self.cosines_PV[places],
            self.norms_P[places],
            self.rewards_P2[places],
            [self.statuses[place] for place in places],
            self.notes,
            sketches_PD=None if self.sketches_PD is None else self.sketches_PD[places],
        )


class GrowingPool:
    """A pool that is scored in portions: what was measured before is not measured again.

    `of_sets` are the targets' informative groups.
    """

    def __init__(self, scorer: PoolScorer, of_sets: Mapping[str, InformativeGroups]) -> None:
        self.scorer, self.of_sets = scorer, of_sets
        self.directions: TargetDirections | None = None
        self.prompt_ids: list[str] = []
        self.notes: list[str] = []
        self.portions: list[PoolScores] = []
        scorer.tokens = 0

    def add(self, pool: Groups, per_response: bool = False) -> None:
        """Score a portion. Raises InputError if it has no informative prompt."""
        informative = require_informative("the pool", pool, self.scorer.objective)
        if self.directions is None:
            self.scorer.fit(informative.groups)
            sets = {name: each.groups for name, each in self.of_sets.items()}
            self.directions = self.scorer.targets(sets)
        names = list(self.of_sets)
        scores = self.scorer.measure(informative.groups, self.directions, names, per_response)
        self.portions.append(scores)
        self.prompt_ids += [group.prompt_id for group in informative.groups]
        self.notes += informative.notes

    def influence(self, pool: Groups) -> Influence:
        """Of all that was added; `pool` has those prompts, and any others without a gradient."""
        assert self.directions is not None, "nothing was added"
        scorer, prompt_ids = self.scorer, [g.prompt_id for g in pool if g.informative]
        scores = joined(self.portions)
        if prompt_ids != self.prompt_ids:
            place_of = {prompt_id: place for place, prompt_id in enumerate(self.prompt_ids)}
            scores = scores.reordered([place_of[prompt_id] for prompt_id in prompt_ids])
        influence_PV = scores.cosines_PV
        if scorer.metric == "whitened":
            assert scores.sketches_PD is not None
            sample_M = whitening_sample(prompt_ids, scores.statuses)
            influence_PV = whitened(influence_PV, scores.sketches_PD, sample_M)
        estimate = pool_estimate(
            pool,
            influence_PV,
            scores.norms_P,
            scores.rewards_P2,
            scores.statuses,
            list(self.of_sets),
            scorer.identity,
            scores.responses,
        )
        notes = [*self._notes(), *scores.notes, *self.directions.notes]
        reliability = self.directions.reliability
        warnings = [w for name, each in reliability.items() for w in each.warnings(name)]
        return Influence(estimate, reliability, scorer.tokens, [*notes, *warnings])

    def _notes(self) -> list[str]:
        """Warnings about the rollouts, each once."""
        about_sets = [note for each in self.of_sets.values() for note in each.notes]
        return list(dict.fromkeys([*self.notes, *about_sets]))


def joined(portions: Sequence[PoolScores]) -> PoolScores:
    """The measurements of all portions, in their order."""
    if len(portions) == 1:
        return portions[0]
    sketches = [each.sketches_PD for each in portions if each.sketches_PD is not None]
    return PoolScores(
        np.concatenate([each.cosines_PV for each in portions]),
        np.concatenate([each.norms_P for each in portions]),
        np.concatenate([each.rewards_P2 for each in portions]),
        [status for each in portions for status in each.statuses],
        list(dict.fromkeys(note for each in portions for note in each.notes)),
        sketches_PD=np.concatenate(sketches) if sketches else None,
    )
