"""Influence: how well a prompt's gradient points where the validation sets want to go.

    U(s, V) = cos(P g(s), P gbar_V),    gbar_V = mean over v in V of g(v)        (docs/method.md)

`exact` (P the identity) takes two passes: the target directions, held in memory; then every pool
prompt's gradient, dotted with each direction, squared for its norm, and dropped. `sparse`
sketches both sides. Nothing here knows of runs, files or command lines.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cropi.errors import InputError
from cropi.estimation.evidence import pooled_standard_error
from cropi.gradients.consumers import DirectionConsumer, Directions, DotConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.settings import TargetMemory
from cropi.influence.cosines import (
    Influence,
    Target,
    TargetReliability,
    cosine,
    cosines,
    target_reliability,
    target_weights,
)
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.schema import SCORED, UNSCORED, InfluenceEstimate, RolloutGroup, fingerprint
from cropi.sketches import FittedSketch, Sketch, SketchBuffer, SketchConsumer
from cropi.sketches.counter_rng import parameters_identity

Progress = Callable[[str, int, int], None]


def counted(progress: Progress, phase: str, total: int) -> Callable[[int], None]:
    """A callback that adds up the prompts it is told of, and says how far a phase is."""
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress(phase, done, total)

    return advance


@dataclass(frozen=True)
class Pass:
    """Informative prompts of a set, and what was left out."""

    groups: list[RolloutGroup]
    skipped: dict[str, int]


def keep_informative(groups: Sequence[RolloutGroup]) -> Pass:
    """Keep the prompts that have a gradient; count the others by reason."""
    counts = Counter(group.score_status for group in groups)
    skipped = {reason: counts[reason] for reason in UNSCORED if counts[reason]}
    return Pass([group for group in groups if group.informative], skipped)


class InfluenceScorer:
    """Scores pools against validation sets under one policy.

    `sketch` None means exact. `target` "unit_mean" averages unit gradients, so that one loud
    prompt does not own the direction. `target_memory` says where exact directions are held.
    `preconditioner` turns gbar into the step that Adam would make of it (docs/method.md).
    """

    def __init__(
        self,
        extractor: GradientExtractor,
        sketch: Sketch | None = None,
        target: Target = "mean",
        progress: Progress | None = None,
        target_memory: TargetMemory = "fp32",
        preconditioner: Preconditioner | None = None,
    ) -> None:
        self.extractor = extractor
        self.sketch = sketch
        self.target: Target = target
        self.target_memory: TargetMemory = target_memory
        self.preconditioner = preconditioner
        self.progress = progress or (lambda phase, done, total: None)
        self.tokens = 0

    def score(
        self, pool: Sequence[RolloutGroup], targets: Mapping[str, Sequence[RolloutGroup]]
    ) -> Influence:
        """Return one cosine a target for each informative prompt of `pool`.

        Raises InputError if a target set or the pool has no informative prompt.
        """
        self.tokens = 0
        kept = require_informative("the pool", pool)
        informative = {n: require_informative(f"validation set {n}", g) for n, g in targets.items()}
        score = self._exact if self.sketch is None else self._sketched
        cosines_PV, norms_P, trust = score(kept.groups, informative)
        estimate = estimate_of(pool, cosines_PV, norms_P, list(targets), self.identity)
        notes = [w for name, t in trust.items() for w in t.warnings(name)]
        return Influence(estimate, trust, self.tokens, notes)

    @property
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts."""
        if self.sketch is None:
            method = {"method": "exact", "parameters": parameters_identity(self.extractor.shapes)}
        else:
            method = {"method": "sketch", **self.sketch.identity}
        adam = {} if self.preconditioner is None else self.preconditioner.identity
        objective = fingerprint(self.extractor.objective.model_dump(mode="json"))
        return {**method, "objective": objective, **adam, "target": self.target}

    def _stream(self, phase: str, groups: Sequence[RolloutGroup], *consumers: object) -> None:
        advance = counted(self.progress, phase, len(groups))
        report = self.extractor.run(groups, consumers, advance)  # type: ignore[arg-type]
        self.tokens += report.tokens

    def _norms_ahead(self, name: str, groups: list[RolloutGroup]) -> np.ndarray:
        """Norms [n] that must be known before gradients are summed: a pass of its own, or none."""
        if self.target == "mean":
            return np.ones(len(groups))
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(f"norms of {name}", groups, norms)
        return norms.norms

    def _exact(
        self, pool: list[RolloutGroup], targets: Mapping[str, Pass]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, TargetReliability]]:
        directions, trust = self.directions({n: t.groups for n, t in targets.items()})
        dots = DotConsumer(directions, len(pool))
        norms = NormConsumer(len(pool), self.extractor.device)
        self._stream("pool", pool, dots, norms)
        found = cosines(dots.dots, norms.norms, directions.norms(), list(targets))
        return found, norms.norms, trust

    def directions(
        self, targets: Mapping[str, list[RolloutGroup]]
    ) -> tuple[Directions, dict[str, TargetReliability]]:
        """The direction of each target, in their order, from informative groups."""
        shapes, device = self.extractor.shapes, self.extractor.device
        directions = Directions(shapes, len(targets), device, self.target_memory)
        trust = {}
        for row, (name, groups) in enumerate(targets.items()):
            weights = target_weights(self._norms_ahead(name, groups), self.target)
            halves = DirectionConsumer(shapes, weights, device, self.target_memory)
            norms = NormConsumer(len(groups), device)
            self._stream(f"target {name}", groups, halves, norms)
            if self.preconditioner is not None:
                self.preconditioner.apply(halves.halves.values)
            halves.write_direction(row, directions)
            gram = halves.half_products()
            split_half = cosine(gram[0, 1], gram[0, 0], gram[1, 1])
            trust[name] = target_reliability(weights * norms.norms, split_half)
            del halves  # they must not wait beside the next target's
        return directions, trust

    def _sketched(
        self, pool: list[RolloutGroup], targets: Mapping[str, Pass]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, TargetReliability]]:
        self._learn(pool)
        means, trust = [], {}
        for name, target in targets.items():
            sketches, norms = self._target_sketches(f"target {name}", target.groups)
            weights = target_weights(norms, self.target)
            halves = [(weights[h::2, None] * sketches[h::2]).sum(0) for h in (0, 1)]
            means.append(halves[0] + halves[1])
            agreement = cosine(halves[0] @ halves[1], halves[0] @ halves[0], halves[1] @ halves[1])
            trust[name] = target_reliability(weights * norms, agreement)
        sketches, norms = self._sketches("pool", pool)
        dots = sketches @ np.stack(means, 1)
        sketched = np.linalg.norm(sketches, axis=1)
        target_norms = [float(np.linalg.norm(m)) for m in means]
        return cosines(dots, sketched, target_norms, list(targets)), norms, trust

    def _learn(self, pool: list[RolloutGroup]) -> None:
        """Let a sketch that learns see a sample of the pool."""
        if isinstance(self.sketch, FittedSketch) and not self.sketch.learnt:
            size = min(len(pool), self.sketch.sample)
            advance = counted(self.progress, "learning the sketch", size)
            self.tokens += learn(self.extractor, self.sketch, pool, advance)

    def _target_sketches(
        self, phase: str, groups: list[RolloutGroup]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_sketches`, of preconditioned gradients where there is a preconditioner."""
        if self.preconditioner is None:
            return self._sketches(phase, groups)
        assert self.sketch is not None
        kept = SketchBuffer(len(groups), self.sketch.dim)
        sketcher = SketchConsumer(self.sketch, kept, self.extractor.device)
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(phase, groups, PreconditioningConsumer(sketcher, self.preconditioner), norms)
        return kept.sketches.double().numpy(), norms.norms

    def _sketches(self, phase: str, groups: list[RolloutGroup]) -> tuple[np.ndarray, np.ndarray]:
        """Sketches float64 [n, dim] and the gradients' norms [n]."""
        assert self.sketch is not None
        kept = SketchBuffer(len(groups), self.sketch.dim)
        self._stream(phase, groups, SketchConsumer(self.sketch, kept, self.extractor.device))
        return kept.sketches.double().numpy(), kept.norms.numpy()


def learn(
    extractor: GradientExtractor,
    sketch: FittedSketch,
    pool: Sequence[RolloutGroup],
    advance: Callable[[int], None] | None = None,
) -> int:
    """Let a sketch learn from a sample of informative pool prompts; return the tokens it took."""
    sample = sample_of(pool, sketch.sample)
    kept = SketchBuffer(len(sample), sketch.width)
    consumer = SketchConsumer(sketch, kept, extractor.device, wide=True)
    report = extractor.run(sample, [consumer], advance)
    sketch.learn(kept.sketches)
    return report.tokens


def sample_of(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    """A fixed random choice of prompts: those whose ids have the lowest hashes."""

    def place(group: RolloutGroup) -> str:
        return hashlib.sha256(group.prompt_id.encode()).hexdigest()

    return sorted(groups, key=place)[:count]


def estimate_of(
    pool: Sequence[RolloutGroup],
    cosines_NV: np.ndarray,
    norms_N: np.ndarray,
    names: Sequence[str],
    identity: dict[str, str],
) -> InfluenceEstimate:
    """The estimate of a whole pool [P] from the cosines and norms of its N informative prompts."""
    status = [group.score_status for group in pool]
    places = np.flatnonzero(np.array([each == SCORED for each in status], dtype=bool))

    def spread(values_N: np.ndarray) -> np.ndarray:
        values_P = np.full(len(pool), np.nan, np.float32)
        values_P[places] = values_N
        return values_P

    mean = {name: spread(cosines_NV[:, v].astype(np.float32)) for v, name in enumerate(names)}
    return InfluenceEstimate(
        prompt_ids=[group.prompt_id for group in pool],
        mean=mean,
        standard_error=pooled_standard_error(mean),
        norms=spread(norms_N.astype(np.float32)),
        tokens=np.array([group.tokens for group in pool], np.int64),
        group_size=np.array([len(group.usable) for group in pool], np.int32),
        status=status,
        identity=identity,
    )


def require_informative(what: str, groups: Sequence[RolloutGroup]) -> Pass:
    """Keep the prompts that have a gradient. Raises InputError if `what` has none."""
    kept = keep_informative(groups)
    if not kept.groups:
        reasons = ", ".join(f"{n} with {r}" for r, n in kept.skipped.items()) or "no prompt at all"
        raise InputError(
            f"{what} has no informative prompt among {len(groups)} ({reasons}); it needs a prompt "
            "with both better and worse responses: add prompts, sample more responses, or choose "
            "tasks the policy sometimes solves"
        )
    return kept
