"""Reading a feature store: directions summed and prompts dotted at the speed of the memory.

A store is a directory: `identity.json`, shards of unit sketches that are mapped and never loaded
as a whole, and, where the sketch is adaptive, `sketch.npz` with what it learnt.

Shapes: N prompts of the store, R rows of a block, V directions, W sets of weights, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.errors import InputError
from cropi.influence.features.identity import read_identity
from cropi.influence.features.shards import (
    AGAIN,
    ShardRows,
    map_matrix,
    matrix_path,
    read_rows,
    rows_path,
)
from cropi.influence.features.writer import SKETCH_FILE
from cropi.store.files import file_hash

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
    `tokens` int64 [N] the prompts' sampled tokens. Raises InputError, naming the file, if the
    store is incomplete or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.identity = read_identity(self.folder)
        self._places = self.identity.shard_places()
        self._require_complete()
        self._require_sketch_file()
        found = [read_rows(self.folder, n, len(p)) for n, p in enumerate(self._places)]
        self.prompt_ids = self._distinct(found)
        self.norms = np.concatenate([rows.norms for rows in found])
        self.lengths = np.concatenate([rows.lengths for rows in found]).astype(np.float64)
        self.tokens = np.concatenate([rows.tokens for rows in found]).astype(np.int64)
        for number in range(len(self._places)):
            self._matrix(number)  # a damaged one is told of now, not after an hour's scan

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def dim(self) -> int:
        """Numbers kept per prompt."""
        return self.identity.dim

    @property
    def sketch_file(self) -> Path | None:
        """What the store's sketch learnt, if it is adaptive."""
        return self.folder / SKETCH_FILE if self.identity.sketch_file else None

    def dots(self, directions_VD: NDArray[np.floating]) -> NDArray[np.float64]:
        """Inner products [N, V] of unit sketches with directions [V, D].

        Sums run in fp32 within a prompt's row: the error is below 1e-6 of a direction's length,
        a hundredth of float16's own.
        """
        directions = torch.from_numpy(np.ascontiguousarray(directions_VD, dtype=np.float32))
        found = np.empty((len(self), len(directions)))
        with one_thread():
            for places, block_RD in self.blocks():
                # D g^T: with few, contiguous directions this order runs at memory speed.
                found[places.start : places.stop] = (directions @ block_RD.T).T.numpy()
        found /= math.sqrt(self.dim)
        return found

    def weighted_sums(self, weights_WN: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sums [W, D] of unit sketches, each with a weight of its own.

        Weights and sums are fp32 within a block of rows, float64 across blocks.
        """
        weights = torch.from_numpy(np.ascontiguousarray(weights_WN, dtype=np.float32))
        total = np.zeros((len(weights), self.dim))
        with one_thread():
            for places, block_RD in self.blocks():
                total += (weights[:, places.start : places.stop] @ block_RD).numpy()
        total /= math.sqrt(self.dim)
        return np.asarray(total)

    def mean(self, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """The direction [D] of the whole store: sketches summed by `weights` [N].

        None means the mean of the sketches (not of the unit sketches).
        """
        chosen = np.full(len(self), 1 / len(self)) if weights is None else weights
        (total,) = self.weighted_sums((chosen * self.lengths)[None])
        return np.asarray(total)

    def blocks(self) -> Iterator[tuple[range, Tensor]]:
        """All rows in order: places, and unit sketches times sqrt(D), fp32 [R, D].

        The tensor is overwritten by the next block.
        """
        rows = max(1, BLOCK_BYTES // (4 * self.dim))
        buffer_RD = torch.empty(rows, self.dim)
        for number, places in enumerate(self._places):
            matrix = torch.from_numpy(self._matrix(number))
            for start in range(0, len(places), rows):
                part = matrix[start : start + rows]
                yield places[start : start + rows], buffer_RD[: len(part)].copy_(part)

    def _matrix(self, number: int) -> np.ndarray:
        path = matrix_path(self.folder, number)
        return map_matrix(path, len(self._places[number]), self.identity)

    def _require_complete(self) -> None:
        missing = [n for n in range(len(self._places)) if not rows_path(self.folder, n).is_file()]
        if missing:
            raise InputError(
                f"{self.folder} is incomplete: {len(missing)} of {len(self._places)} shards are "
                f"missing, first {rows_path(self.folder, missing[0]).name}; run the same "
                "`cropi features` again, which goes on with what is there"
            )

    def _require_sketch_file(self) -> None:
        path = self.sketch_file
        if path and not (path.is_file() and file_hash(path) == self.identity.sketch_file):
            raise InputError(
                f"{path} is missing or damaged, and without it no other features can be compared "
                "with these; copy it from another store of the same sketch, or make them again"
            )

    def _distinct(self, shards: list[ShardRows]) -> list[str]:
        """All prompt_ids. Raises InputError naming the file in which one stands again."""
        seen: set[str] = set()
        for number, rows in enumerate(shards):
            for name in rows.prompt_ids:
                if name in seen:
                    raise InputError(
                        f"{rows_path(self.folder, number)} has prompt_id {name!r}, which stands "
                        f"in the store already; {AGAIN}"
                    )
                seen.add(name)
        return [name for rows in shards for name in rows.prompt_ids]


def as_store(store: FeatureStore | str | Path) -> FeatureStore:
    """Return a store as it is, or open the one in a folder."""
    return FeatureStore(store) if isinstance(store, str | Path) else store
