"""What a worker does of scoring: it loads the policy and the directions once, and measures shards.

Whole-gradient directions are as large as the model, so they travel as files of sums: workers sum
the gradients of parts of a target, one of them joins the sums, and each of them reads the result.

Shape legend: N prompts of a target, P of a pool, V targets, D dimensions of a sketch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.gradients.consumers import (
    DirectionConsumer,
    Directions,
    GradientConsumer,
    NormConsumer,
    SumConsumer,
)
from cropi.gradients.settings import TargetMemory
from cropi.influence.growing_pool import TargetDirections
from cropi.influence.preconditioner import PreconditioningConsumer
from cropi.influence.scorer import Scorer, fit_sketch
from cropi.influence.sharded.pass_arrays import pass_arrays, report_arrays
from cropi.influence.sharded.shard_files import read_arrays, write_arrays
from cropi.schema import RolloutGroup
from cropi.sketches import FittedSketch, SketchBuffer, SketchConsumer

Groups = Sequence[RolloutGroup]


@dataclass(frozen=True)
class File:
    """A file of arrays, and the fingerprint of what they are made from."""

    path: Path
    fingerprint: str

    def write(self, **arrays: Any) -> None:
        """Write the arrays."""
        write_arrays(self.path, arrays, self.fingerprint)

    def read(self) -> dict[str, np.ndarray]:
        """The arrays. Raises InputError if they are not there, or not whole."""
        arrays = read_arrays(self.path, self.fingerprint)
        if arrays is None:
            self.path.unlink(missing_ok=True)  # else the next call would find it again
            raise InputError(
                f"{self.path} was damaged, or a worker does not see it; use a folder that all "
                "workers share, and give the same command again"
            )
        return arrays


@dataclass
class ShardWork:
    """What all units of one scoring share; a worker keeps the scorer and the directions.

    `make` loads the policy and makes the scorer. `sketch_state` is where a sketch that is fitted to
    data keeps its state.
    """

    make: Callable[[], Scorer]
    sketch_state: File
    _held: tuple[tuple[File, ...], TargetDirections] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a worker loads for itself."""
        return {k: v for k, v in self.__dict__.items() if k != "scorer"} | {"_held": None}

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer in this process."""
        return self.make()

    def prepare(self, candidates: Groups) -> dict[str, str]:
        """Fit a sketch that is fitted to data, keep its state; return what defines the scores."""
        scorer, tokens = self.scorer, 0
        sketch = scorer.sketch
        if isinstance(sketch, FittedSketch):
            if not sketch.is_fitted:
                tokens = fit_sketch(scorer.extractor, sketch, candidates)
            state = np.frombuffer(sketch.state_bytes(), np.uint8)
            self.sketch_state.write(state=state, tokens=np.array(tokens))
        else:
            self.sketch_state.write(tokens=np.array(tokens))
        return scorer.identity

    def ready(self) -> Scorer:
        """The scorer, with the sketch as it was fitted."""
        sketch = self.scorer.sketch
        if isinstance(sketch, FittedSketch) and not sketch.is_fitted:
            sketch.load_state(self.sketch_state.read()["state"].tobytes())
        return self.scorer

    def directions(self, files: Sequence[File]) -> TargetDirections:
        """The directions in these files, one in each; they replace those that are held."""
        if self._held is None or self._held[0] != tuple(files):
            self._held = None
            self._held = tuple(files), _read_directions(self.scorer, files)
        return self._held[1]


def identity(work: ShardWork, candidates: Groups, out: File) -> None:
    """Unit: fit the sketch, if it is fitted, and say what defines the scores."""
    out.write(identity=np.array(json.dumps(work.prepare(candidates))))


def norms(work: ShardWork, groups: Groups, out: File) -> int:
    """Unit: the norms of gradients; returns how many prompts that were."""
    consumer = NormConsumer(len(groups), work.scorer.extractor.device)
    report = work.scorer.extractor.run(groups, [consumer])
    out.write(norms=consumer.norms, **report_arrays(report))
    return len(groups)


def sketches(work: ShardWork, groups: Groups, out: File) -> int:
    """Unit: sketches of a target's gradients, preconditioned if they are to be, and norms."""
    scorer = work.ready()
    assert scorer.sketch is not None
    buffer = SketchBuffer(len(groups), scorer.sketch.dim)
    sketcher = SketchConsumer(scorer.sketch, buffer, scorer.extractor.device)
    consumers: list[GradientConsumer] = [sketcher]
    plain = NormConsumer(len(groups), scorer.extractor.device)
    if scorer.preconditioner is not None:
        consumers = [PreconditioningConsumer(sketcher, scorer.preconditioner), plain]
    report = scorer.extractor.run(groups, consumers)
    lengths = plain.norms if len(consumers) > 1 else buffer.norms.numpy()
    out.write(sketches=buffer.sketches.numpy(), norms=lengths, **report_arrays(report))
    return len(groups)


def gradient_sum(
    work: ShardWork, groups: Groups, weights_N: NDArray[np.float64], sums: File, out: File
) -> int:
    """Unit: the weighted sum of gradients, in a file of its own, and their norms."""
    scorer = work.scorer
    extractor = scorer.extractor
    memory: TargetMemory = "offload" if scorer.target_memory == "offload" else "fp32"
    total = SumConsumer(extractor.shapes, weights_N[None], extractor.device, memory)
    lengths = NormConsumer(len(groups), extractor.device)
    report = extractor.run(groups, [total, lengths])
    sums.write(**{f"={name}": v[0].cpu().numpy() for name, v in total.sums.values.items()})
    out.write(norms=lengths.norms, **report_arrays(report))
    return len(groups)


def join_sums(work: ShardWork, halves: Sequence[Sequence[File]], out: File) -> None:
    """Unit: the direction of a target from the sums of its two halves' parts, in their order."""
    scorer = work.scorer
    shapes, device = scorer.extractor.shapes, scorer.extractor.device
    joined = DirectionConsumer(shapes, np.zeros((2, 1)), device, scorer.target_memory)
    for half, files in enumerate(halves):
        for file in files:
            for name, values in file.read().items():
                into = joined.sums.values[name[1:]][half]
                into += torch.from_numpy(values).to(into.device)
    if scorer.preconditioner is not None:
        scorer.preconditioner.apply(joined.sums.values)
    joined.rescale()
    direction = Directions(shapes, 1, device, scorer.target_memory)
    joined.write_direction(0, direction)
    vector = {f"={n}": v[0].float().cpu().numpy() for n, v in direction.values.items()}
    length = np.array(direction.norms()[0])
    out.write(**vector, length=length, products=joined.half_products())


def measure(
    work: ShardWork,
    groups: Groups,
    names: Sequence[str],
    directions: Sequence[File],
    per_response: bool,
    out: File,
) -> int:
    """Unit: compare the gradients of a shard of the pool with the directions."""
    measured = work.ready().pool_pass(groups, work.directions(directions), names, per_response)
    out.write(**pass_arrays(measured))
    return len(groups)


def _read_directions(scorer: Scorer, files: Sequence[File]) -> TargetDirections:
    arrays = [file.read() for file in files]
    lengths = [float(each.pop("length")) for each in arrays]
    if scorer.sketch is not None:
        return TargetDirections(np.stack([each["direction"] for each in arrays]), lengths, {})
    shapes, device = scorer.extractor.shapes, scorer.extractor.device
    values = Directions(shapes, len(files), device, scorer.target_memory)
    for row, each in enumerate(arrays):
        for name in shapes:
            values.write(name, row, torch.from_numpy(each.pop(f"={name}")))
    return TargetDirections(values, lengths, {})
