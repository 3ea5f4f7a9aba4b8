"""What every scorer concludes from passes over prompts, wherever the passes are made.

Shape legend: P prompts, V targets, N prompts of a target, D dimensions of a sketch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.gradients.pass_record import ExtractionReport
from cropi.gradients.settings import ObjectiveConfig
from cropi.influence.cosines import Influence, require_direction
from cropi.influence.growing_pool import GrowingPool, PoolScores, TargetDirections
from cropi.influence.left_out_prompts import informative_targets, require_some_in_range
from cropi.influence.pool_pass import PoolPass, pool_scores, usable_statuses
from cropi.influence.settings import Metric
from cropi.influence.targets import Target, half_products, half_weights, target_reliability
from cropi.progress import PhaseProgress
from cropi.schema import RolloutGroup

Groups = Sequence[RolloutGroup]
"""Called with a phase's name, the prompts done and the prompts in all."""


class PoolScorer(ABC):
    """Scores pools against validation sets under one policy; where passes run is a subclass's.

    `target` "unit_mean" averages unit gradients, so that one prompt with a large gradient does not
    determine the direction. `tokens` are those that the last call put through the model.
    """

    def __init__(self, target: Target, metric: Metric, progress: PhaseProgress | None) -> None:
        self.target: Target = target
        self.metric: Metric = metric
        self.progress = progress or (lambda phase, done, total: None)
        self.tokens = 0

    @property
    @abstractmethod
    def objective(self) -> ObjectiveConfig:
        """The objective whose gradients are compared."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts; known once something was scored."""

    @abstractmethod
    def fit(self, pool: Groups) -> None:
        """Fit a sketch that is fitted to data, unless it already is."""

    @abstractmethod
    def targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        """The direction of each target, in their order, from informative groups.

        A sketch that is fitted to data must have been fitted.
        """

    @abstractmethod
    def pool_pass(
        self, groups: Groups, directions: TargetDirections, names: Sequence[str], responses: bool
    ) -> PoolPass:
        """What the gradients of informative groups have in common with the directions."""

    @abstractmethod
    def _target_sketches(
        self, phase: str, groups: Groups
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], ExtractionReport]:
        """Sketches [N, D] of gradients, preconditioned if they are to be, their norms, a report."""

    def score(
        self, pool: Groups, targets: Mapping[str, Groups], per_response: bool = False
    ) -> Influence:
        """Return one cosine per target for each informative prompt of `pool`.

        `per_response` adds, in a pass of its own, what each response brings, and standard errors by
        leaving one response out; cosines are the same to the bit. Prompts whose numbers are out of
        range are left out of scores and targets, and have a status and a note that say so. Raises
        InputError if a target set or the pool has no informative prompt, or none that is left.
        """
        self.tokens = 0
        growing = self.growing(targets)
        growing.add(pool, per_response)
        return growing.influence(pool)

    def growing(self, targets: Mapping[str, Groups]) -> GrowingPool:
        """A pool that is scored in portions. Raises as `score` does for targets."""
        return GrowingPool(self, informative_targets(targets, self.objective))

    def measure(
        self, groups: Groups, directions: TargetDirections, names: Sequence[str], responses: bool
    ) -> PoolScores:
        """Compare the gradients of informative groups with the targets' directions."""
        if responses and self.metric == "whitened":
            raise InputError(
                "per_response splits a cosine into its responses' parts, and influence.metric is "
                "whitened; leave out per_response, or set influence.metric=cosine"
            )
        for name, length in zip(names, directions.lengths, strict=True):
            require_direction(name, length)
        measured = self.pool_pass(groups, directions, names, responses)
        scores = pool_scores(groups, measured, directions.lengths, names)
        require_some_in_range("the pool", [group.prompt_id for group in groups], scores.statuses)
        return scores

    def _sketched_targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        directions, reliability, notes = [], {}, []
        for name, groups in sets.items():
            sketches_ND, norms_N, report = self._target_sketches(f"target {name}", groups)
            notes += usable_statuses(f"validation set {name}", groups, report, norms_N)[1]
            weights_2N = half_weights(norms_N, self.target)
            halves_2D = np.stack([(w[:, None] * sketches_ND).sum(0) for w in weights_2N])
            directions.append(halves_2D.sum(0))
            products = half_products(halves_2D)
            reliability[name] = target_reliability(weights_2N, norms_N, products)
        lengths = [float(np.linalg.norm(direction)) for direction in directions]
        return TargetDirections(np.stack(directions), lengths, reliability, notes)
