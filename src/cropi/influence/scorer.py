"""Influence: how well a prompt's gradient points in the direction that helps a validation set.

    U(s, V) = cos(P g(s), P gbar_V),    gbar_V = mean over v in V of g(v)        (docs/method.md)

Exact (P the identity) takes two passes: the target directions, held in memory; then every pool
prompt's gradient, dotted with each direction, squared for its norm, and dropped. With a sketch both
sides are projected. Nothing here knows of runs, files or command lines.

Shape legend: P prompts, V targets, N prompts of a target, D dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.consumers import (
    DirectionConsumer,
    Directions,
    DotConsumer,
    GradientConsumer,
    NormConsumer,
)
from cropi.gradients.extractor import SKETCHES_OF_PARTS, GradientExtractor
from cropi.gradients.pass_record import ExtractionReport
from cropi.gradients.response_gradients import ResponseGroups
from cropi.gradients.settings import ObjectiveConfig, TargetMemory
from cropi.influence.growing_pool import TargetDirections
from cropi.influence.pool_pass import PoolPass, usable_statuses
from cropi.influence.pool_scorer import Groups, PoolScorer
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.influence.response_influence import exact_measures, sketched_measures
from cropi.influence.settings import Metric
from cropi.influence.targets import (
    Target,
    half_weights,
    target_reliability,
)
from cropi.influence.whitening import DIMENSIONS, lowest_hashes
from cropi.progress import PhaseProgress
from cropi.schema import RolloutGroup, fingerprint
from cropi.sketches import FittedSketch, Sketch, SketchBuffer, SketchConsumer
from cropi.sketches.counter_rng import parameters_identity
from cropi.sketches.windowed import WindowedSketch


class Scorer(PoolScorer):
    """Scores pools with a policy that is loaded in this process.

    `sketch` None means exact. `target_memory` says where exact directions are held.
    `preconditioner` turns gbar into the step that Adam would make of it.
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
        super().__init__(target, metric, progress)
        self.extractor = extractor
        self.sketch = sketch
        self.target_memory: TargetMemory = target_memory
        self.preconditioner = preconditioner
        if extractor.ranks.share_prompts and (sketch is not None or metric != "cosine"):
            raise InputError(SKETCHES_OF_PARTS)

    @property
    def objective(self) -> ObjectiveConfig:
        """The objective whose gradients are compared."""
        return self.extractor.objective

    @property
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts."""
        if self.sketch is None:
            parameters = parameters_identity(self.extractor.whole_shapes)
            method = {"method": "exact", "parameters": parameters}
        else:
            method = {"method": "sketch", **self.sketch.identity}
        adam = {} if self.preconditioner is None else self.preconditioner.identity
        objective = fingerprint(self.extractor.objective.model_dump(mode="json"))
        metric = {} if self.metric == "cosine" else {"metric": self.metric}
        return {**method, "objective": objective, **adam, **metric, "target": self.target}

    def pool_pass(
        self, groups: Groups, directions: TargetDirections, names: Sequence[str], responses: bool
    ) -> PoolPass:
        """What the gradients of informative groups have in common with the directions."""
        if isinstance(directions.values, Directions):
            return self._exact(groups, directions.values, responses)
        assert directions.values is not None, "the directions are elsewhere"
        return self._sketched(groups, directions.values, responses)

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

    def _exact(self, pool: Groups, directions: Directions, per_response: bool) -> PoolPass:
        """Compare whole gradients."""
        dots = DotConsumer(directions, len(pool))
        norms = NormConsumer(len(pool), self.extractor.device)
        buffer = SketchBuffer(len(pool), DIMENSIONS) if self.metric == "whitened" else None
        sketches = [] if buffer is None else [self._shared_sketches(buffer)]
        report = self._stream("pool", pool, dots, norms, *sketches)
        sketches_PD = None if buffer is None else buffer.sketches.numpy()
        measures = None
        if per_response:
            responses, advance = ResponseGroups(pool), self._counter("responses", pool)
            measures = exact_measures(self.extractor, responses, directions, advance)
            self.tokens += measures.tokens
        return PoolPass(dots.dots, norms.norms, norms.norms, report, sketches_PD, measures)

    def _shared_sketches(self, buffer: SketchBuffer) -> SketchConsumer:
        """Sketches that tell what whole gradients share with each other."""
        sketch = WindowedSketch(self.extractor.shapes, seed=0, dim=DIMENSIONS)
        return SketchConsumer(sketch, buffer, self.extractor.device)

    def _sketched(
        self, pool: Groups, directions_VD: NDArray[np.float64], per_response: bool
    ) -> PoolPass:
        """Compare sketches."""
        sketches_PD, norms_P, report = self._sketches("pool", pool)
        lengths_P = np.linalg.norm(sketches_PD, axis=1)
        dots_PV = sketches_PD @ np.stack(list(directions_VD), 1)
        measures = None
        if per_response:
            assert self.sketch is not None
            advance = self._counter("responses", pool)
            measures = sketched_measures(self.extractor, pool, self.sketch, directions_VD, advance)
            self.tokens += measures.tokens
        return PoolPass(dots_PV, norms_P, lengths_P, report, sketches_PD, measures)

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
                self.preconditioner.apply(halves.sums.values, self._held)
            halves.rescale()
            halves.write_direction(row, directions)
            products = halves.half_products()
            reliability[name] = target_reliability(weights_2N, norms.norms, products)
            del halves  # freed before the next target's are made
        return TargetDirections(directions, directions.norms(), reliability, notes)

    def _held(self, name: str, matrix: Tensor) -> Tensor:
        """What this rank's directions hold of a parameter, from values of all of it."""
        part = self.extractor.parts[name]
        if tuple(matrix.shape) != part.whole:
            raise InputError(
                f"precondition adam is not supported for {name}, a packed layer that is split over "
                "processes by tensor parallelism; split the model with fsdp"
            )
        return matrix[slice(*part.rows), slice(*part.columns)][self.extractor.ranks.rows]

    def _target_norms(self, name: str, groups: Groups) -> NDArray[np.float64]:
        """Norms [N] that must be known before gradients are summed: a pass of its own, or none."""
        if self.target == "mean":
            return np.ones(len(groups))
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(f"norms of {name}", groups, norms)
        return norms.norms

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
    indices = lowest_hashes([group.prompt_id for group in groups], count)
    return [groups[index] for index in indices]


def progress_counter(progress: PhaseProgress, phase: str, total: int) -> Callable[[int], None]:
    """A callback that adds up the prompts it is given, and reports how far a phase is."""
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress(phase, done, total)

    return advance
