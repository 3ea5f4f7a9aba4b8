"""Influence: how well a prompt's gradient points in the direction that helps a validation set.

    U(s, V) = cos(P g(s), P gbar_V),    gbar_V = mean over v in V of g(v)        (docs/method.md)

Exact (P the identity) takes two passes: the target directions, held in memory; then every pool
prompt's gradient, dotted with each direction, squared for its norm, and dropped. With a sketch both
sides are projected. Nothing here knows of runs, files or command lines.

Shape legend: P prompts, V targets, N prompts of a target, D dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.gradients.consumers import (
    DirectionConsumer,
    Directions,
    DotConsumer,
    GradientConsumer,
    NormConsumer,
)
from cropi.gradients.extractor import ExtractionReport, GradientExtractor
from cropi.gradients.response_gradients import ResponseGroups
from cropi.gradients.settings import TargetMemory
from cropi.influence.cosines import (
    Influence,
    cosines,
    require_direction,
)
from cropi.influence.growing_pool import GrowingPool, PoolScores, TargetDirections
from cropi.influence.left_out import (
    distance_notes,
    gradient_statuses,
    left_out_notes,
    require_finite_norms,
    require_informative,
    require_some_in_range,
    wild_notes,
)
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.influence.response_influence import (
    ResponseMeasures,
    exact_measures,
    response_influence,
    sketched_measures,
)
from cropi.influence.settings import Metric
from cropi.influence.targets import (
    Target,
    half_products,
    half_weights,
    target_reliability,
)
from cropi.influence.whitening import DIMENSIONS, lowest_hashes
from cropi.schema import RolloutGroup, fingerprint
from cropi.sketches import FittedSketch, Sketch, SketchBuffer, SketchConsumer
from cropi.sketches.counter_rng import parameters_identity
from cropi.sketches.windowed import WindowedSketch

Groups = Sequence[RolloutGroup]
PhaseProgress = Callable[[str, int, int], None]
"""Called with a phase's name, the prompts done and the prompts in all."""


class Scorer:
    """Scores pools against validation sets under one policy.

    `sketch` None means exact. `target` "unit_mean" averages unit gradients, so that one prompt
    with a large gradient does not determine the direction. `target_memory` says where exact
    directions are held. `preconditioner` turns gbar into the step that Adam would make of it.
    `tokens` are those that the last call put through the model.
    """

    def __init__(
        self,
        extractor: GradientExtractor,
        sketch: Sketch | None = None,
        target: Target = "mean",
        progress: PhaseProgress | None = None,
        target_memory: TargetMemory = "fp32",
        preconditioner: Preconditioner | None = None,
        metric: Metric = "cosine",
    ) -> None:
        self.metric: Metric = metric
        self.extractor = extractor
        self.sketch = sketch
        self.target: Target = target
        self.target_memory: TargetMemory = target_memory
        self.preconditioner = preconditioner
        self.progress = progress or (lambda phase, done, total: None)
        self.tokens = 0

    @property
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts."""
        if self.sketch is None:
            method = {"method": "exact", "parameters": parameters_identity(self.extractor.shapes)}
        else:
            method = {"method": "sketch", **self.sketch.identity}
        adam = {} if self.preconditioner is None else self.preconditioner.identity
        objective = fingerprint(self.extractor.objective.model_dump(mode="json"))
        metric = {} if self.metric == "cosine" else {"metric": self.metric}
        return {**method, "objective": objective, **adam, **metric, "target": self.target}

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
        objective = self.extractor.objective
        of_sets = {
            name: require_informative(f"validation set {name}", each, objective)
            for name, each in targets.items()
        }
        return GrowingPool(self, of_sets)

    def measure(
        self, groups: Groups, directions: TargetDirections, names: Sequence[str], responses: bool
    ) -> PoolScores:
        """Compare the gradients of informative groups with the targets' directions."""
        if responses and self.metric == "whitened":
            raise InputError(
                "single responses have parts of a cosine, and influence.metric is whitened; leave "
                "out per_response, or set influence.metric=cosine"
            )
        if isinstance(directions.values, Directions):
            scores = self._exact(groups, directions.values, names, responses)
        else:
            scores = self._sketched(groups, directions.values, names, responses)
        require_some_in_range("the pool", [group.prompt_id for group in groups], scores.statuses)
        return scores

    def targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        """The direction of each target, in their order, from informative groups.

        A sketch that is fitted to data must have been fitted.
        """
        return self._dense_targets(sets) if self.sketch is None else self._sketched_targets(sets)

    def _stream(self, phase: str, groups: Groups, *consumers: GradientConsumer) -> ExtractionReport:
        report = self.extractor.run(groups, consumers, self._counter(phase, groups))
        self.tokens += report.tokens
        return report

    def _counter(self, phase: str, groups: Groups) -> Callable[[int], None]:
        return progress_counter(self.progress, phase, len(groups))

    def fit(self, pool: Groups) -> None:
        """Fit a sketch that is fitted to data, unless it already is."""
        if isinstance(self.sketch, FittedSketch) and not self.sketch.is_fitted:
            size = min(len(pool), self.sketch.sample)
            advance = progress_counter(self.progress, "fitting the sketch", size)
            self.tokens += fit_sketch(self.extractor, self.sketch, pool, advance)

    def _exact(
        self, pool: Groups, directions: Directions, names: Sequence[str], per_response: bool
    ) -> PoolScores:
        """Compare whole gradients."""
        lengths_V = directions.norms()
        for name, length in zip(names, lengths_V, strict=True):
            require_direction(name, length)
        dots = DotConsumer(directions, len(pool))
        norms = NormConsumer(len(pool), self.extractor.device)
        buffer = SketchBuffer(len(pool), DIMENSIONS) if self.metric == "whitened" else None
        sketches = [] if buffer is None else [self._shared_sketches(buffer)]
        report = self._stream("pool", pool, dots, norms, *sketches)
        statuses, notes = usable_statuses("the pool", pool, report, norms.norms)
        cosines_PV = cosines(dots.dots, norms.norms, lengths_V, names)
        sketches_PD = None if buffer is None else buffer.sketches.numpy()
        rewards_P2 = report.current_rewards
        scores = PoolScores(
            cosines_PV, norms.norms, rewards_P2, statuses, notes, sketches_PD=sketches_PD
        )
        if not per_response:
            return scores
        responses, advance = ResponseGroups(pool), self._counter("responses", pool)
        measures = exact_measures(self.extractor, responses, directions, advance)
        return self._with_responses(scores, responses, measures, norms.norms, lengths_V)

    def _shared_sketches(self, buffer: SketchBuffer) -> SketchConsumer:
        """Sketches that tell what whole gradients share with each other."""
        sketch = WindowedSketch(self.extractor.shapes, seed=0, dim=DIMENSIONS)
        return SketchConsumer(sketch, buffer, self.extractor.device)

    def _sketched(
        self,
        pool: Groups,
        directions_VD: NDArray[np.float64],
        names: Sequence[str],
        per_response: bool,
    ) -> PoolScores:
        """Compare sketches."""
        lengths_V = [float(np.linalg.norm(direction)) for direction in directions_VD]
        for name, length in zip(names, lengths_V, strict=True):
            require_direction(name, length)
        sketches_PD, norms_P, report = self._sketches("pool", pool)
        lengths_P = np.linalg.norm(sketches_PD, axis=1)
        shortest_P = np.minimum(lengths_P, norms_P)
        statuses, notes = usable_statuses("the pool", pool, report, shortest_P)
        dots_PV = sketches_PD @ np.stack(list(directions_VD), 1)
        cosines_PV = cosines(dots_PV, lengths_P, lengths_V, names)
        rewards_P2 = report.current_rewards
        scores = PoolScores(
            cosines_PV, norms_P, rewards_P2, statuses, notes, sketches_PD=sketches_PD
        )
        if not per_response:
            return scores
        assert self.sketch is not None
        measures = sketched_measures(
            self.extractor, pool, self.sketch, directions_VD, self._counter("responses", pool)
        )
        return self._with_responses(scores, ResponseGroups(pool), measures, lengths_P, lengths_V)

    def _with_responses(
        self,
        scores: PoolScores,
        responses: ResponseGroups,
        measures: ResponseMeasures,
        norms_P: NDArray[np.float64],
        lengths_V: Sequence[float],
    ) -> PoolScores:
        """The scores with what the responses bring; `norms_P` are those of the cosines."""
        self.tokens += measures.tokens
        parts = response_influence(responses, measures, norms_P, lengths_V)
        return replace(scores, responses=parts)

    def _dense_targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        shapes, device, ranks = self.extractor.shapes, self.extractor.device, self.extractor.ranks
        directions = Directions(shapes, len(sets), device, self.target_memory, ranks)
        reliability, notes = {}, []
        for row, (name, groups) in enumerate(sets.items()):
            weights_2N = half_weights(self._target_norms(name, groups), self.target)
            halves = DirectionConsumer(shapes, weights_2N, device, self.target_memory, ranks)
            norms = NormConsumer(len(groups), device)
            report = self._stream(f"target {name}", groups, halves, norms)
            notes += usable_statuses(f"validation set {name}", groups, report, norms.norms)[1]
            if self.preconditioner is not None:
                self.preconditioner.apply(halves.sums.values, ranks.rows)
            halves.rescale()
            halves.write_direction(row, directions)
            products = halves.half_products()
            reliability[name] = target_reliability(weights_2N, norms.norms, products)
            del halves  # freed before the next target's are made
        return TargetDirections(directions, reliability, notes)

    def _target_norms(self, name: str, groups: Groups) -> NDArray[np.float64]:
        """Norms [N] that must be known before gradients are summed: a pass of its own, or none."""
        if self.target == "mean":
            return np.ones(len(groups))
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(f"norms of {name}", groups, norms)
        return norms.norms

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
        return TargetDirections(np.stack(directions), reliability, notes)

    def _target_sketches(
        self, phase: str, groups: Groups
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], ExtractionReport]:
        """As `_sketches`, of preconditioned gradients if there is a preconditioner."""
        if self.preconditioner is None:
            return self._sketches(phase, groups)
        assert self.sketch is not None
        buffer = SketchBuffer(len(groups), self.sketch.dim)
        sketcher = SketchConsumer(self.sketch, buffer, self.extractor.device)
        norms = NormConsumer(len(groups), self.extractor.device)
        scaled = PreconditioningConsumer(sketcher, self.preconditioner)
        report = self._stream(phase, groups, scaled, norms)
        return buffer.sketches.double().numpy(), norms.norms, report

    def _sketches(
        self, phase: str, groups: Groups
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], ExtractionReport]:
        """Sketches float64 [P, D], the gradients' norms [P], and what the pass saw."""
        assert self.sketch is not None
        buffer = SketchBuffer(len(groups), self.sketch.dim)
        consumer = SketchConsumer(self.sketch, buffer, self.extractor.device)
        report = self._stream(phase, groups, consumer)
        return buffer.sketches.double().numpy(), buffer.norms.numpy(), report


def usable_statuses(
    what: str, groups: Groups, report: ExtractionReport, norms_P: NDArray[np.float64]
) -> tuple[list[str], list[str]]:
    """The statuses [P] of a pass's prompts, and notes about those that are left out.

    Raises InputError if a gradient is not finite, or numbers out of range leave no prompt.
    """
    ids = [group.prompt_id for group in groups]
    require_finite_norms(what, ids, norms_P)
    require_some_in_range(what, ids, report.statuses)
    statuses = gradient_statuses(report.statuses, norms_P)
    return statuses, [*left_out_notes(what, ids, statuses), *ratio_notes(what, groups, report)]


def ratio_notes(what: str, groups: Groups, report: ExtractionReport) -> list[str]:
    """What the ratios that a pass saw say about policy and sampler of the rollouts of `what`."""
    ratios = report.ratios
    if ratios is None or any(group.logprobs_at_another_temperature for group in groups):
        return []
    wild = wild_notes(what, [groups[place].prompt_id for place in ratios.wild])
    return [*wild, *distance_notes(what, ratios.kl, ratios.effective_share)]


def fit_sketch(
    extractor: GradientExtractor,
    sketch: FittedSketch,
    pool: Groups,
    advance: Callable[[int], None] | None = None,
) -> int:
    """Fit a sketch to a sample of informative pool prompts; return the tokens it took."""
    sample = hash_sample(pool, sketch.sample)
    buffer = SketchBuffer(len(sample), sketch.width)
    consumer = SketchConsumer(sketch, buffer, extractor.device, wide=True)
    report = extractor.run(sample, [consumer], advance)
    sketch.fit(buffer.sketches)
    return report.tokens


def hash_sample(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    """A random but fixed choice of prompts."""
    places = lowest_hashes([group.prompt_id for group in groups], count)
    return [groups[place] for place in places]


def progress_counter(progress: PhaseProgress, phase: str, total: int) -> Callable[[int], None]:
    """A callback that adds up the prompts it is given, and reports how far a phase is."""
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress(phase, done, total)

    return advance
