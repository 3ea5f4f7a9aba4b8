"""Writing a feature store, so that a kill costs at most the shard in flight.

Which prompts a shard holds is decided before any gradient is computed: shard k has the k-th
`rows_per_shard` informative prompts, in the pool's order. So the store has the same bytes however
often it was interrupted, and a shard is either complete or missing.

Shape legend: P prompts of a batch, R rows of a shard, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cropi.errors import InputError
from cropi.influence.features.feature_files import (
    IDENTITY,
    SKETCH_FILE,
    ShardRows,
    StoreIdentity,
    differences,
    map_matrix,
    matrix_path,
    read_identity,
    read_shard_rows,
    rows_path,
    write_identity,
    write_shard,
)
from cropi.influence.left_out_prompts import gradient_statuses
from cropi.schema import SCORED, unique
from cropi.store.files import atomic_write, bytes_hash, file_hash, remove, require_writable
from cropi.store.lock import LOCK


def require_store_place(folder: Path) -> None:
    """Raise InputError unless a store can be written, or continued, at `folder`."""
    # A kill before the identity was written leaves these.
    leftovers = {f"{IDENTITY}.part", f"{SKETCH_FILE}.part", SKETCH_FILE, LOCK}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - leftovers and IDENTITY not in names:
        raise InputError(
            f"{folder} holds files that do not belong to a feature store; give a new or "
            "empty directory"
        )
    require_writable(folder / IDENTITY)


class ShardSink:
    """Takes the sketches of one shard's prompts, in any order and any batches.

    `SketchConsumer` calls it; indices are relative to the shard.
    """

    def __init__(self, prompt_ids: Sequence[str], identity: StoreIdentity) -> None:
        self.prompt_ids = list(prompt_ids)
        rows = len(self.prompt_ids)
        self.matrix_RD = np.zeros((rows, identity.dim), dtype=identity.dtype)
        self.norms = np.full(rows, math.nan)
        self.lengths = np.zeros(rows, dtype=np.float32)
        self.statuses: Sequence[str] = [SCORED] * rows

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Take rows `index_P` int64: fp32 sketches [P, D] and gradient norms float64 [P].

        Raises InputError if one is not finite.
        """
        indices = index_P.cpu().numpy()
        assert np.isnan(self.norms[indices]).all(), "a prompt was sketched twice"
        lengths_P = torch.linalg.vector_norm(sketches_PD, dim=1, dtype=torch.float64)
        self._require_finite(indices, (lengths_P + norms_P.to(lengths_P.device)).cpu().numpy())
        # A sketch that is exactly zero has no direction: its row stays zero.
        scale_P = math.sqrt(sketches_PD.shape[1]) / lengths_P.where(lengths_P > 0, math.inf)
        units_PD = sketches_PD * scale_P.to(sketches_PD.dtype)[:, None]
        dtype = torch.float16 if self.matrix_RD.dtype == np.float16 else torch.float32
        self.matrix_RD[indices] = units_PD.to(dtype).cpu().numpy()
        self.lengths[indices] = lengths_P.cpu().numpy()
        self.norms[indices] = norms_P.cpu().numpy()

    def _require_finite(self, indices: np.ndarray, values_P: np.ndarray) -> None:
        bad = indices[~np.isfinite(values_P)]
        if len(bad):
            raise InputError(
                f"the gradient of prompt {self.prompt_ids[bad[0]]!r} is not finite (NaN or "
                "infinity); check the checkpoint's weights and the rollouts' log-probs, or compute "
                "in float32"
            )

    def rows(self, tokens: Sequence[int]) -> ShardRows:
        """The finished rows."""
        assert not np.isnan(self.norms).any(), "a prompt of the shard is missing"
        return ShardRows(
            self.prompt_ids,
            self.norms,
            self.lengths,
            np.asarray(tokens, dtype=np.int32),
            gradient_statuses(self.statuses, np.minimum(self.norms, self.lengths)),
        )


class FeatureWriter:
    """Writes a store, or continues one; one writer at a time.

    `prompt_ids` and `tokens` (each prompt's sampled tokens) are those of the informative prompts,
    in the pool's order. `sketch_file` is the state of a fitted sketch, whose hash the identity
    must carry. Raises InputError if the folder holds a store of another identity.
    """

    def __init__(
        self,
        folder: Path,
        identity: StoreIdentity,
        prompt_ids: Sequence[str],
        tokens: Sequence[int],
        sketch_file: bytes | None = None,
    ) -> None:
        assert len(prompt_ids) == len(tokens) == identity.prompts
        assert unique(prompt_ids), "a prompt_id appears twice"
        assert identity.sketch_file == (bytes_hash(sketch_file) if sketch_file else "")
        self.folder, self.identity = folder, identity
        self.prompt_ids, self.tokens = list(prompt_ids), list(tokens)
        require_store_place(folder)
        self._open(sketch_file)
        self._complete = {n for n, _ in enumerate(identity.shard_indices()) if self._is_complete(n)}
        self._remove_leftovers()

    @property
    def done(self) -> set[str]:
        """The prompt_ids whose shards are complete."""
        indices = self.identity.shard_indices()
        return {self.prompt_ids[index] for n in self._complete for index in indices[n]}

    def pending(self) -> list[tuple[int, range]]:
        """Shards still to write: number, and the indices of their prompts."""
        indices = self.identity.shard_indices()
        return [(n, members) for n, members in enumerate(indices) if n not in self._complete]

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardSink]:
        """Yield the sink of one shard, which is written at the end of the block."""
        indices = self.identity.shard_indices()[number]
        sink = ShardSink([self.prompt_ids[p] for p in indices], self.identity)
        yield sink
        rows = sink.rows([self.tokens[p] for p in indices])
        write_shard(self.folder, number, sink.matrix_RD, rows, self.identity)
        self._complete.add(number)

    def _open(self, sketch_file: bytes | None) -> None:
        """Check that the store there is the same, or begin one; the identity is written last."""
        if (self.folder / IDENTITY).is_file():
            differing = differences(read_identity(self.folder), self.identity)
            if differing:
                raise InputError(
                    f"{self.folder} holds other features: {'; '.join(differing)}; give another "
                    "directory, or the same model, rollouts and settings to continue these"
                )
        path = self.folder / SKETCH_FILE
        if sketch_file and not (path.is_file() and file_hash(path) == self.identity.sketch_file):
            with atomic_write(path) as part:
                part.write_bytes(sketch_file)
        if not (self.folder / IDENTITY).is_file():
            write_identity(self.folder, self.identity)

    def _is_complete(self, number: int) -> bool:
        """Whether a shard has all of its prompts; a damaged one is made again."""
        indices = self.identity.shard_indices()[number]
        if not rows_path(self.folder, number).is_file():
            return False
        try:
            rows = read_shard_rows(self.folder, number, self.identity)
            map_matrix(matrix_path(self.folder, number), len(indices), self.identity)
        except InputError:
            return False
        return rows.prompt_ids == [self.prompt_ids[p] for p in indices]

    def _remove_leftovers(self) -> None:
        """Remove what a kill left: half-written files, and files of incomplete shards."""
        leftovers = {*self.folder.glob("*.part"), *self.folder.glob("shard-*")}
        for number in self._complete:
            leftovers -= {matrix_path(self.folder, number), rows_path(self.folder, number)}
        for path in leftovers:
            remove(path)
