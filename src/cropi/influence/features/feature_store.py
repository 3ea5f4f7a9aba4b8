"""Reading a feature store, and influence from its features alone: no model, no gradients.

Directions are summed and prompts dotted in one scan, at the speed of the memory; shards of unit
sketches are mapped and never loaded as a whole.

Shape legend: N prompts of the store, R rows of a block, V directions, W sets of weights, D
dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.errors import InputError
from cropi.estimation.noise import pooled_standard_error
from cropi.influence.cosines import Influence, cosines
from cropi.influence.features.feature_files import (
    REBUILD_HINT,
    SKETCH_FILE,
    ShardRows,
    map_matrix,
    matrix_path,
    read_identity,
    read_shard_rows,
    require_comparable,
    rows_path,
)
from cropi.influence.left_out_prompts import left_out_notes, require_some_in_range
from cropi.influence.targets import (
    Target,
    TargetReliability,
    half_products,
    half_weights,
    target_reliability,
)
from cropi.schema import SCORED, InfluenceEstimate, fingerprint
from cropi.store.files import file_hash
from cropi.store.remote import local_place

BLOCK_BYTES = 1 << 22
"""Bytes of a block in fp32: it should stay in the processor's cache between its two uses."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work with one thread for a while.

    One is enough for a scan, which waits for memory; several, waiting for each other at every
    block, fall to a tenth of its speed where anything else wants a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FeatureStore:
    """The features of a rollout file's informative prompts, in the pool's order.

    `norms` float64 [N] are the gradients' L2 norms, `lengths` float64 [N] their sketches',
    `tokens` int64 [N] the prompts' sampled tokens, `statuses` [N] "scored" or why a prompt was left
    out. Raises InputError, naming the file, if the
    store is incomplete or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.identity = read_identity(self.folder)
        self._indices = self.identity.shard_indices()
        self._require_complete()
        self._require_sketch_file()
        shards = [
            read_shard_rows(self.folder, n, self.identity) for n, _ in enumerate(self._indices)
        ]
        self.prompt_ids = self._unique_ids(shards)
        self.norms = np.concatenate([rows.norms for rows in shards])
        self.lengths = np.concatenate([rows.lengths for rows in shards]).astype(np.float64)
        self.tokens = np.concatenate([rows.tokens for rows in shards]).astype(np.int64)
        self.statuses = [status for rows in shards for status in rows.statuses]
        for number in range(len(self._indices)):
            self._matrix(number)  # a damaged one is reported now, not after an hour's scan

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder)!r}: {len(self):,} prompts of {self.dim:,} numbers)"

    @property
    def dim(self) -> int:
        """Numbers kept per prompt."""
        return self.identity.dim

    @property
    def sketch_file(self) -> Path | None:
        """The state of the store's sketch, if it is fitted to data."""
        return self.folder / SKETCH_FILE if self.identity.sketch_file else None

    def dots(self, directions_VD: NDArray[np.floating]) -> NDArray[np.float64]:
        """Inner products [N, V] of unit sketches with directions [V, D].

        Sums run in fp32 within a prompt's row: the error is below 1e-6 of a direction's length,
        a hundredth of float16's own.
        """
        directions = torch.from_numpy(np.ascontiguousarray(directions_VD, dtype=np.float32))
        dots_NV = np.empty((len(self), len(directions)))
        with one_thread():
            for indices, block_RD in self.blocks():
                # D g^T: with few, contiguous directions this order runs at memory speed.
                dots_NV[indices.start : indices.stop] = (directions @ block_RD.T).T.numpy()
        dots_NV /= math.sqrt(self.dim)
        return dots_NV

    def weighted_sums(self, weights_WN: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sums [W, D] of unit sketches, each weighted.

        Weights and sums are fp32 within a block of rows, float64 across blocks.
        """
        weights = torch.from_numpy(np.ascontiguousarray(weights_WN, dtype=np.float32))
        total = np.zeros((len(weights), self.dim))
        with one_thread():
            for indices, block_RD in self.blocks():
                total += (weights[:, indices.start : indices.stop] @ block_RD).numpy()
        total /= math.sqrt(self.dim)
        return np.asarray(total)

    def mean(self, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """The direction [D] of the whole store: sketches summed by `weights` [N].

        None means the mean of the sketches (not of the unit sketches).
        """
        weights_N = np.full(len(self), 1 / len(self)) if weights is None else weights
        (total,) = self.weighted_sums((weights_N * self.lengths)[None])
        return np.asarray(total)

    def blocks(self) -> Iterator[tuple[range, Tensor]]:
        """All rows in order: indices, and unit sketches times sqrt(D), fp32 [R, D].

        The tensor is overwritten by the next block.
        """
        rows = max(1, BLOCK_BYTES // (4 * self.dim))
        buffer_RD = torch.empty(rows, self.dim)
        for number, indices in enumerate(self._indices):
            matrix = torch.from_numpy(self._matrix(number))
            for start in range(0, len(indices), rows):
                part = matrix[start : start + rows]
                yield indices[start : start + rows], buffer_RD[: len(part)].copy_(part)

    def _matrix(self, number: int) -> np.ndarray:
        path = matrix_path(self.folder, number)
        return map_matrix(path, len(self._indices[number]), self.identity)

    def _require_complete(self) -> None:
        missing = [n for n in range(len(self._indices)) if not rows_path(self.folder, n).is_file()]
        if missing:
            raise InputError(
                f"{self.folder} is incomplete: {len(missing)} of {len(self._indices)} shards are "
                f"missing, first {rows_path(self.folder, missing[0]).name}; run the same "
                "`cropi features` again, which continues with what is there"
            )

    def _require_sketch_file(self) -> None:
        path = self.sketch_file
        if path and not (path.is_file() and file_hash(path) == self.identity.sketch_file):
            raise InputError(
                f"{path} is missing or damaged, and without it no other features can be compared "
                "with these; copy it from another store of the same sketch, or make them again"
            )

    def _unique_ids(self, shards: list[ShardRows]) -> list[str]:
        """All prompt_ids. Raises InputError naming the file in which one appears again."""
        seen: set[str] = set()
        for number, rows in enumerate(shards):
            for name in rows.prompt_ids:
                if name in seen:
                    raise InputError(
                        f"{rows_path(self.folder, number)} has prompt_id {name!r}, which is "
                        f"in the store already; {REBUILD_HINT}"
                    )
                seen.add(name)
        return [name for rows in shards for name in rows.prompt_ids]


def as_store(store: FeatureStore | str | Path) -> FeatureStore:
    """Return a store as it is, or open the one in a folder."""
    return FeatureStore(local_place(store)) if isinstance(store, str | Path) else store


def score_features(
    pool: FeatureStore | str | Path,
    targets: Mapping[str, FeatureStore | str | Path],
    target: Target = "mean",
) -> Influence:
    """Influence of each prompt of `pool` on each target, as `Scorer` gives with that sketch.

    Stores may be given by their folders. Raises InputError if there is no target, a store is
    damaged or incomplete, a target's features are not comparable with the pool's, or its gradients
    sum to zero.
    """
    if not targets:
        raise InputError("score needs at least one target: give NAME and its features")
    pool_store = as_store(pool)
    stores = {name: as_store(store) for name, store in targets.items()}
    return _score(pool_store, stores, target)


def _score(pool: FeatureStore, targets: Mapping[str, FeatureStore], target: Target) -> Influence:
    for name, store in targets.items():
        what = f"the features of target {name} ({store.folder}) do not match {pool.folder}"
        require_comparable(pool.identity, store.identity, what)
    adam = preconditioner_of(pool, targets)
    directions = {name: target_direction(store, target) for name, store in targets.items()}
    directions_VD = np.stack([direction for direction, _ in directions.values()])
    cosines_PV = cosines(
        pool.dots(directions_VD),
        np.sign(pool.lengths),  # rows are of unit length, or zero
        [float(length) for length in np.linalg.norm(directions_VD, axis=1)],
        list(targets),
    )
    require_some_in_range("the pool", pool.prompt_ids, pool.statuses)
    scored = np.array([status == SCORED for status in pool.statuses], dtype=bool)
    cosines_PV[~scored] = np.nan
    mean = {n: cosines_PV[:, v].astype(np.float32) for v, n in enumerate(targets)}
    estimate = InfluenceEstimate(
        prompt_ids=pool.prompt_ids,
        mean=mean,
        standard_error=pooled_standard_error(mean),
        norms=np.where(scored, pool.norms, np.nan).astype(np.float32),
        tokens=pool.tokens,
        group_size=np.zeros(len(pool), np.int32),  # not stored
        status=list(pool.statuses),
        unlisted=dict(pool.identity.skipped),
        identity=score_identity(pool, adam, target),
    )
    reliability = {name: each for name, (_, each) in directions.items()}
    notes = left_out_notes("the pool", pool.prompt_ids, pool.statuses)
    for name, store in targets.items():
        notes += left_out_notes(f"validation set {name}", store.prompt_ids, store.statuses)
    notes += [w for name, each in reliability.items() for w in each.warnings(name)]
    return Influence(estimate, reliability, 0, notes)


def target_direction(
    store: FeatureStore, target: Target
) -> tuple[NDArray[np.float64], TargetReliability]:
    """A target's direction, float64 [D], and how reliable it is."""
    weights_2N = half_weights(store.norms, target)
    halves_2D = store.weighted_sums(weights_2N * store.lengths)
    reliability = target_reliability(weights_2N, store.norms, half_products(halves_2D))
    return halves_2D.sum(0), reliability


def preconditioner_of(pool: FeatureStore, targets: Mapping[str, FeatureStore]) -> Mapping[str, str]:
    """The identity of what scaled the targets' gradients, the same for all; the pool's are plain.

    Raises InputError otherwise.
    """
    if pool.identity.preconditioner:
        raise InputError(
            f"{pool.folder} holds preconditioned features, and only a target's may be; make the "
            "pool's with precondition=none"
        )
    first, *others = targets.values()
    for store in others:
        if store.identity.preconditioner != first.identity.preconditioner:
            raise InputError(
                f"{first.folder} and {store.folder} are preconditioned differently; make all "
                "targets' features with the same precondition and checkpoint"
            )
    return first.identity.preconditioner


def score_identity(
    pool: FeatureStore, preconditioner: Mapping[str, str], target: Target
) -> dict[str, str]:
    """What defines the scores beside policy and rollouts."""
    sketch, dtype = pool.identity.sketch, pool.identity.dtype
    objective = fingerprint(pool.identity.settings["objective"])
    return {
        "method": "sketch",
        **sketch,
        "objective": objective,
        **preconditioner,
        "target": target,
        "features": dtype,
    }
