"""Makes many sketches of one pool in few passes, and times each alone.

Gradients are the expensive part, so a pass over the pool feeds as many sketches as memory allows:
only the batch in flight is sketched, dotted with the sketched target directions and dropped. Cost
is measured separately, one sketch at a time on a few prompts, because sketches that share a pass
cannot use the shortcuts that each may use alone.

Shape legend: P prompts, D dimensions, V targets, N prompts of a sample, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cropi.diagnostics.diagnosis_settings import FidelitySettings
from cropi.diagnostics.fidelity import (
    FidelityReport,
    SketchAgreement,
    SketchSpec,
    sketch_agreement,
    summarise,
)
from cropi.gradients.consumers import Directions, DotConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.left_out_prompts import require_informative
from cropi.influence.scorer import Scorer
from cropi.progress import PhaseProgress
from cropi.schema import InfluenceEstimate, RolloutGroup, derive_seed, longest_allowed
from cropi.sketches import FittedSketch, Sketch, SketchConsumer, make_sketch

PASS_BYTES = 1 << 30
"""About what the sketches of one pass may hold besides the model."""
IN_FLIGHT = 256
"""Prompts of a batch, for estimating that."""

Groups = Sequence[RolloutGroup]


def measure_fidelity(
    model: nn.Module,
    pool: Groups,
    validation: Mapping[str, Groups],
    settings: FidelitySettings,
    progress: PhaseProgress | None = None,
) -> FidelityReport:
    """Compare every sketch asked for with exact influence.

    Raises InputError if the pool or a set has no informative prompt, or a sketch is unknown.
    """
    return FidelityExperiment(
        model, pool, validation, settings, progress or (lambda *_: None)
    ).run()


class FidelityExperiment:
    """One pool, its targets and exact scores, with which sketches are compared."""

    def __init__(
        self,
        model: nn.Module,
        pool: Groups,
        validation: Mapping[str, Groups],
        settings: FidelitySettings,
        progress: PhaseProgress,
    ) -> None:
        self.settings, self.progress = settings, progress
        self.specs = settings.specs()
        objective = settings.objective.with_length(longest_allowed(pool))
        self.extractor = GradientExtractor(model, objective, settings.batch_tokens)
        self.informative = require_informative("the pool", pool, objective).groups
        self.pool = _sample(self.informative, settings.max_prompts, settings.seed)
        self.targets = {
            name: require_informative(f"validation set {name}", groups, objective).groups
            for name, groups in validation.items()
        }
        for spec in self.specs:
            self._make(spec, 0)  # unknown names and sizes fail here, not after an hour

    def run(self) -> FidelityReport:
        """Exact scores, then sketches pass by pass, then each one's cost."""
        settings = self.settings
        scorer = Scorer(self.extractor, progress=self.progress)
        influence = scorer.score(self.pool, self.targets)
        exact = influence.estimate
        results: dict[SketchSpec, list[SketchAgreement]] = {spec: [] for spec in self.specs}
        jobs = [(spec, seed) for seed in range(settings.seeds) for spec in self.specs]
        done = 0
        for part in self._passes(jobs):
            for (spec, _), result in zip(part, self._compare(part, exact), strict=True):
                results[spec].append(result)
            done += len(part)
            self.progress("sketches", done, len(jobs))
        seconds, exact_seconds = self._costs()
        return FidelityReport(
            prompts=len(self.pool),
            targets={name: len(groups) for name, groups in self.targets.items()},
            coordinates=sum(math.prod(shape) for shape in self.extractor.shapes.values()),
            share=settings.top,
            seeds=settings.seeds,
            exact_seconds=exact_seconds,
            sketches=[summarise(s, results[s], seconds[s]) for s in self.specs],
            budget=settings.budget,
            notes=[*influence.notes, *self._notes()],
        )

    def _make(self, spec: SketchSpec, seed: int) -> Sketch:
        name, _, projection = spec.name.partition(":")
        settings: dict[str, Any] = {"dim": spec.dim}
        if spec.ratio is not None:
            settings["ratio"] = spec.ratio
        if projection:
            settings["projection"] = projection
        seed = derive_seed(self.settings.seed, "fidelity", seed)
        return make_sketch(name, self.extractor.shapes, seed, **settings)

    def _passes(
        self, jobs: Sequence[tuple[SketchSpec, int]]
    ) -> Iterator[list[tuple[SketchSpec, int]]]:
        """Jobs that fit in memory together, at least one at a time."""
        part: list[tuple[SketchSpec, int]] = []
        held = 0
        for job in jobs:
            sketch = self._make(*job)
            prompts = sketch.sample if isinstance(sketch, FittedSketch) else 0
            size = 4 * sketch.width * max(IN_FLIGHT, min(prompts, len(self.informative)))
            if part and held + size > PASS_BYTES:
                yield part
                part, held = [], 0
            part.append(job)
            held += size
        if part:
            yield part

    def _compare(
        self, part: Sequence[tuple[SketchSpec, int]], exact: InfluenceEstimate
    ) -> list[SketchAgreement]:
        """One pass over targets and pool for all sketches of `part`."""
        sketches = [self._make(*job) for job in part]
        self._fit(sketches)
        means = [MeanSink(sketch.dim, len(self.targets)) for sketch in sketches]
        for row, groups in enumerate(self.targets.values()):
            sinks = [mean.for_target(row, len(groups)) for mean in means]
            self._stream(groups, sketches, sinks)
        scores = [CosineSink(mean.mean_VD, len(self.pool)) for mean in means]
        self._stream(self.pool, sketches, scores)
        names, share = list(self.targets), self.settings.top
        return [
            sketch_agreement(
                exact.mean,
                {n: score.cosines_PV[:, v] for v, n in enumerate(names)},
                exact.prompt_ids,
                share,
            )
            for score in scores
        ]

    def _fit(self, sketches: Sequence[Sketch]) -> None:
        """Fit adaptive sketches on a sample of the whole pool, not just of what is compared."""
        unfitted = [s for s in sketches if isinstance(s, FittedSketch) and not s.is_fitted]
        if not unfitted:
            return
        size = max(sketch.sample for sketch in unfitted)
        sample = _sample(self.informative, size, derive_seed(self.settings.seed, "learning"))
        samples = [torch.zeros(min(len(sample), s.sample), s.width) for s in unfitted]
        sinks = [sample_sink(wide_NW) for wide_NW in samples]
        self._stream(sample, unfitted, sinks, wide=True)
        for sketch, wide_NW in zip(unfitted, samples, strict=True):
            sketch.fit(wide_NW)

    def _stream(
        self,
        groups: Groups,
        sketches: Sequence[Sketch],
        sinks: Sequence[Any],
        wide: bool = False,
    ) -> None:
        device = self.extractor.device
        consumers = [
            SketchConsumer(sketch, sink, device, wide)
            for sketch, sink in zip(sketches, sinks, strict=True)
        ]
        self.extractor.run(groups, consumers)

    def _costs(self) -> tuple[dict[SketchSpec, float], float]:
        """Seconds per prompt of each sketch and of exact influence.

        Each sketch is timed in turns with exact influence, and its ratio to that is what counts:
        a machine that slows down for a while slows both.
        """
        some = self.pool[: self.settings.timed_prompts]
        directions = Directions(self.extractor.shapes, len(self.targets), self.extractor.device)
        exact_times: list[float] = []

        def exact() -> None:
            norms = NormConsumer(len(some), self.extractor.device)
            self.extractor.run(some, [DotConsumer(directions, len(some)), norms])

        ratios = {}
        for n, spec in enumerate(self.specs):
            sketch, sink = self._make(spec, 0), NullSink()
            self._fit([sketch])
            self._stream(some[:2], [sketch], [sink])  # whatever is made once is made now
            work = partial(self._stream, some, [sketch], [sink])
            pairs = [(_timed(exact), _timed(work)) for _ in range(self.settings.repetitions)]
            ratios[spec] = float(np.median([seconds / reference for reference, seconds in pairs]))
            exact_times += [reference for reference, _ in pairs]
            self.progress("cost", n + 1, len(self.specs))
        seconds = float(np.median(exact_times)) / len(some)
        return {spec: ratio * seconds for spec, ratio in ratios.items()}, seconds

    def _notes(self) -> list[str]:
        wanted = self.settings.max_prompts
        if len(self.pool) >= min(wanted, 200):
            return []
        return [
            f"only {len(self.pool)} informative prompts were compared: the top "
            f"{self.settings.top:.0%} is so few that precision is coarse"
        ]


class MeanSink:
    """Mean sketches of the targets, float64 [V, D]."""

    def __init__(self, dim: int, targets: int) -> None:
        self.mean_VD = torch.zeros(targets, dim, dtype=torch.float64)

    def for_target(self, row: int, prompts: int) -> Callable[[Tensor, Tensor, Tensor], None]:
        """Return a sink that adds a target's prompts to its row."""

        def sink(index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
            self.mean_VD[row] += sketches_PD.double().sum(0).cpu() / prompts

        return sink


class CosineSink:
    """Records each prompt's cosine with the targets' mean sketches, [n, V]."""

    def __init__(self, mean_VD: Tensor, prompts: int) -> None:
        self.unit_DV = (mean_VD / mean_VD.norm(dim=1, keepdim=True).clamp_min(1e-300)).T
        self.cosines_PV = np.zeros((prompts, len(mean_VD)))

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Score a batch."""
        wide_PD = sketches_PD.double().cpu()
        lengths_P1 = wide_PD.norm(dim=1, keepdim=True).clamp_min(1e-300)
        self.cosines_PV[index_P.cpu().numpy()] = (wide_PD @ self.unit_DV / lengths_P1).numpy()


class NullSink:
    """For timing: the sketches leave the device and are dropped."""

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Wait for the sketches."""
        sketches_PD.cpu()


def sample_sink(wide_NW: Tensor) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a sink that records the first prompts' wide sketches, as many as there is room for."""

    def sink(index_P: Tensor, sketches_PW: Tensor, norms_P: Tensor) -> None:
        places = index_P.cpu()
        inside = places < len(wide_NW)
        wide_NW[places[inside]] = sketches_PW.cpu()[inside]

    return sink


def _timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes, the device's queue included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _sample(groups: Groups, size: int, seed: int) -> list[RolloutGroup]:
    """At most `size` groups, drawn without replacement, in their order."""
    if len(groups) <= size:
        return list(groups)
    drawn = np.random.default_rng(seed).choice(len(groups), size, replace=False)
    return [groups[n] for n in np.sort(drawn)]
