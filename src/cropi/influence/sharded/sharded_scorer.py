"""Scoring in shards: the passes of a scorer, made by workers and joined here.

Everything that is concluded from what was measured is the code of `PoolScorer`; here are only the
passes. Each leaves a file per shard, so that a call which was killed continues where it was, and a
worker that died costs the shard it was at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.execution import Executor, WorkUnit, run_all
from cropi.gradients.pass_record import ExtractionReport
from cropi.gradients.settings import ObjectiveConfig
from cropi.influence.growing_pool import GrowingPool, TargetDirections
from cropi.influence.pool_pass import PoolPass, joined_passes, joined_reports, usable_statuses
from cropi.influence.pool_scorer import Groups, PoolScorer
from cropi.influence.scorer import Scorer, hash_sample
from cropi.influence.settings import InfluenceConfig
from cropi.influence.sharded import shard_work
from cropi.influence.sharded.pass_arrays import pass_of, report_of
from cropi.influence.sharded.shard_files import content_of, cut, is_made, read_arrays
from cropi.influence.sharded.shard_work import File, ShardWork
from cropi.influence.targets import TargetReliability, half_weights, target_reliability
from cropi.progress import PhaseProgress
from cropi.schema import fingerprint
from cropi.store.files import remove
from cropi.text import plural

CANDIDATES = 4096
"""Prompts that a sketch may choose from, to be fitted on."""


@dataclass(frozen=True)
class SumPart:
    """Prompts of one half of a target, by index; files of their sum and of their norms."""

    half: int
    indices: list[int]
    sums: File
    measured: File

    def is_made(self, joined: bool) -> bool:
        """Whether nothing is left to be done; the sum is not needed once it was `joined`."""
        files = [self.measured] if joined else [self.measured, self.sums]
        return all(is_made(file.path, file.fingerprint) for file in files)


class ShardedScorer(PoolScorer):
    """A scorer whose policy is loaded by workers, not here.

    `make` makes the scorer that a worker uses; it is called there. `key` identifies the policy and
    everything else that decides scores beside rollouts; `folder` keeps what has been measured, and
    all workers see it. Scores are the same bits for any number of workers; they differ from those
    of a plain `Scorer` by rounding, because sums are taken in another order.
    """

    def __init__(
        self,
        make: Callable[[], Scorer],
        settings: InfluenceConfig,
        constant_length: int,
        key: object,
        executor: Executor,
        folder: Path,
        progress: PhaseProgress | None = None,
    ) -> None:
        super().__init__(settings.target, settings.metric, progress)
        self.settings = settings
        self._objective = settings.objective.with_length(constant_length)
        self.executor, self._folder = executor, folder.absolute()
        self._key = fingerprint(key, settings.model_dump(mode="json"), constant_length)
        self._make = make
        self._identity: dict[str, str] = {}
        self._direction_files: list[File] = []

    @property
    def objective(self) -> ObjectiveConfig:
        """The objective whose gradients are compared."""
        return self._objective

    @property
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts; known once a policy was loaded."""
        return self._identity

    def growing(self, targets: Mapping[str, Groups]) -> GrowingPool:
        """A pool that is scored in portions; workers end after each, as others may be wanted."""
        return _ShardedPool(self, super().growing(targets).of_sets)

    def fit(self, pool: Groups) -> None:
        """Have a worker load the policy, and fit a sketch that is fitted to data."""
        exact = self.settings.sketch.is_exact
        candidates = [] if exact else hash_sample(pool, CANDIDATES)
        self._key = fingerprint(self._key, content_of(candidates))
        state, made = self._file("sketch"), self._file("identity")
        self._work = ShardWork(self._make, state)
        if not (is_made(state.path, state.fingerprint) and is_made(made.path, made.fingerprint)):
            unit = self._unit("load the policy", shard_work.identity, (candidates, made), made)
            self._run("loading the policy", [unit], [0])
        self._identity = json.loads(str(made.read()["identity"]))
        self.tokens += int(state.read()["tokens"])

    def targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        """The directions, in files; workers read them."""
        if self.settings.sketch.is_exact:
            return self._dense_targets(sets)
        directions = self._sketched_targets(sets)
        assert isinstance(directions.values, np.ndarray)
        self._direction_files = []
        for row, length in zip(directions.values, directions.lengths, strict=True):
            file = self._file("direction", len(self._direction_files), row.tobytes().hex())
            file.write(direction=row, length=np.array(length))
            self._direction_files.append(file)
        return directions

    def pool_pass(
        self, groups: Groups, directions: TargetDirections, names: Sequence[str], responses: bool
    ) -> PoolPass:
        """What the gradients of informative groups have in common with the directions."""
        files = self._direction_files
        made_from = [file.fingerprint for file in files]
        arguments = (list(names), files, responses)
        arrays = self._shards("pool", groups, shard_work.measure, arguments, made_from)
        measured = joined_passes([pass_of(each) for each in arrays])
        self.tokens += measured.report.tokens
        self.tokens += 0 if measured.responses is None else measured.responses.tokens
        return measured

    def _target_norms(self, name: str, groups: Groups) -> NDArray[np.float64]:
        if self.target == "mean":
            return np.ones(len(groups))
        arrays = self._shards(f"norms of {name}", groups, shard_work.norms)
        self.tokens += sum(report_of(each).tokens for each in arrays)
        return np.concatenate([each["norms"] for each in arrays])

    def _target_sketches(
        self, phase: str, groups: Groups
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], ExtractionReport]:
        arrays = self._shards(phase, groups, shard_work.sketches)
        report = joined_reports([report_of(each) for each in arrays])
        self.tokens += report.tokens
        sketches_ND = np.concatenate([each["sketches"] for each in arrays]).astype(np.float64)
        return sketches_ND, np.concatenate([each["norms"] for each in arrays]), report

    def _dense_targets(self, sets: Mapping[str, Groups]) -> TargetDirections:
        self._direction_files, lengths, notes = [], [], []
        reliability: dict[str, TargetReliability] = {}
        for name, groups in sets.items():
            weights_2N = half_weights(self._target_norms(name, groups), self.target)
            norms_N, report, direction = self._direction(name, groups, weights_2N)
            self.tokens += report.tokens
            notes += usable_statuses(f"validation set {name}", groups, report, norms_N)[1]
            arrays = direction.read()
            lengths.append(float(arrays["length"]))
            reliability[name] = target_reliability(weights_2N, norms_N, arrays["products"])
            self._direction_files.append(direction)
        return TargetDirections(None, lengths, reliability, notes)

    def _direction(
        self, name: str, groups: Groups, weights_2N: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], ExtractionReport, File]:
        """The norms and the report of a target's pass, and the file of its direction.

        A part of the sum is over prompts of one half, so that it is one vector and not two.
        """
        whole = fingerprint(content_of(groups), weights_2N.tolist())
        direction = self._file("direction", name, whole)
        joined = is_made(direction.path, direction.fingerprint)
        parts = self._parts(name, groups, whole)
        missing = [part for part in parts if not part.is_made(joined)]
        units = [self._sum_unit(name, groups, weights_2N, part) for part in missing]
        sizes = [len(part.indices) for part in missing]
        self._run(f"target {name}", units, sizes, len(groups))
        if not joined:
            halves = [[part.sums for part in parts if part.half == half] for half in (0, 1)]
            unit = self._unit(f"join {name}", shard_work.join_sums, (halves, direction), direction)
            self._run(f"joining {name}", [unit], [0])
        for part in parts:
            remove(part.sums.path)
        return *_in_order([(part.indices, part.measured.read()) for part in parts]), direction

    def _parts(self, name: str, groups: Groups, whole: str) -> list[SumPart]:
        """A target's two halves, as `half_weights` makes them, each cut into parts."""
        parts = []
        for half in (0, 1):
            indices = list(range(half, len(groups), 2))
            for run in cut([groups[n] for n in indices], least=1):
                key = (name, half, run.start, whole)
                sums, measured = self._file("sum", *key), self._file("norms", *key)
                parts.append(SumPart(half, indices[run.start : run.stop], sums, measured))
        return parts

    def _sum_unit(
        self, name: str, groups: Groups, weights_2N: NDArray[np.float64], part: SumPart
    ) -> WorkUnit:
        members = [groups[index] for index in part.indices]
        weights = weights_2N[part.half, part.indices]
        title = f"target {name}, half {part.half + 1}, {_named(members)}"
        arguments = (members, weights, part.sums, part.measured)
        return self._unit(title, shard_work.gradient_sum, arguments, part.measured)

    def _shards(
        self,
        phase: str,
        groups: Groups,
        function: Callable[..., int],
        arguments: Sequence[Any] = (),
        made_from: object = None,
    ) -> list[dict[str, np.ndarray]]:
        """What a unit per shard of `groups` measures, in order; those that are there are read."""
        runs = cut(groups)
        parts = [groups[run.start : run.stop] for run in runs]
        files = [self._file(phase, content_of(each), arguments[2:], made_from) for each in parts]
        arrays = [read_arrays(file.path, file.fingerprint) for file in files]
        units, sizes = [], []
        for part, file, existing in zip(parts, files, arrays, strict=True):
            if existing is None:
                title = f"{phase}, {_named(part)}"
                units.append(self._unit(title, function, (part, *arguments, file), file))
                sizes.append(len(part))
        self._run(phase, units, sizes, len(groups))
        return [
            file.read() if existing is None else existing
            for file, existing in zip(files, arrays, strict=True)
        ]

    def _file(self, *name: object) -> File:
        made_from = fingerprint(self._key, *name)
        return File(self._folder / f"{made_from}.npz", made_from)

    def _unit(
        self, title: str, function: Callable[..., Any], arguments: tuple[Any, ...], out: File
    ) -> WorkUnit:
        return WorkUnit(
            title, function, arguments, output=out.path, shared=self._work, speculative=True
        )

    def _run(
        self, phase: str, units: Sequence[WorkUnit], sizes: Sequence[int], total: int = 0
    ) -> None:
        """Run units, each with so many prompts. Raises InputError naming those that failed."""
        done = total - sum(sizes)
        size_of = {unit.name: size for unit, size in zip(units, sizes, strict=True)}
        self.progress(phase, done, total)
        remedy = (
            "if memory ran out, lower influence.batch_tokens; the same command continues with what "
            f"the others measured, which is in {self._folder}"
        )
        for finished in run_all(self.executor, units, "shard", remedy):
            done += size_of[finished.unit.name]
            self.progress(f"{phase}, {plural(self.executor.workers, 'worker')}", done, total)


class _ShardedPool(GrowingPool):
    def add(self, pool: Groups, per_response: bool = False) -> None:
        """Score a portion, with workers that keep policy and directions meanwhile."""
        assert isinstance(self.scorer, ShardedScorer)
        with self.scorer.executor:
            super().add(pool, per_response)


def _named(groups: Groups) -> str:
    """What a shard is called: by its first and last prompt."""
    ids = [group.prompt_id for group in groups]
    return f"prompt {ids[0]}" if len(ids) == 1 else f"prompts {ids[0]} to {ids[-1]}"


def _in_order(
    parts: Sequence[tuple[list[int], dict[str, np.ndarray]]],
) -> tuple[NDArray[np.float64], ExtractionReport]:
    """Norms and report of all prompts, from those of parts with their indices."""
    indices = [index for each, _ in parts for index in each]
    report = joined_reports([report_of(arrays) for _, arrays in parts])
    order = np.argsort(indices)
    norms_N = np.concatenate([arrays["norms"] for _, arrays in parts])[order]
    return norms_N, report.reordered(order)
