"""One shard on disk: a matrix that can be mapped into memory, and a table of its rows.

`shard-00000.npy` holds unit sketches times sqrt(dim) [rows, dim]. A coordinate of a unit vector
is about 1/sqrt(dim), and most of those of 8,192 dimensions and more would come near float16's
subnormal numbers, where precision is lost; scaled, they are about 1, and the largest possible,
sqrt(dim), is far below 65,504. `shard-00000.parquet` holds each row's prompt_id, norm and so on.
The table is written last: a matrix without one is what a kill left behind.

Shapes: R rows of a shard, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.influence.features.identity import StoreIdentity
from cropi.store.files import atomic_write, read_table, require_file, write_table

COLUMNS = {
    "prompt_id": pa.string(),
    "norm": pa.float64(),
    "length": pa.float32(),
    "tokens": pa.int32(),
}
AGAIN = "delete it and run the same `cropi features` again, which makes what is missing"


@dataclass(frozen=True)
class ShardRows:
    """What is known of a shard's rows beside their sketches.

    `norms` float64 [R] are the gradients' L2 norms, `lengths` float32 [R] those of their
    sketches, `tokens` int32 [R] the prompts' sampled tokens.
    """

    prompt_ids: list[str]
    norms: NDArray[np.float64]
    lengths: NDArray[np.float32]
    tokens: NDArray[np.int32]


def matrix_path(folder: Path, number: int) -> Path:
    """Where shard `number` keeps its sketches."""
    return folder / f"shard-{number:05d}.npy"


def rows_path(folder: Path, number: int) -> Path:
    """Where shard `number` keeps what belongs to its rows."""
    return folder / f"shard-{number:05d}.parquet"


def write_shard(folder: Path, number: int, matrix_RD: NDArray[Any], rows: ShardRows) -> None:
    """Write a shard; it counts from the moment its table has its name."""
    with atomic_write(matrix_path(folder, number)) as part, part.open("wb") as handle:
        np.lib.format.write_array(handle, matrix_RD, allow_pickle=False)
    values = (rows.prompt_ids, rows.norms, rows.lengths, rows.tokens)
    columns = {
        name: pa.array(column, kind)
        for (name, kind), column in zip(COLUMNS.items(), values, strict=True)
    }
    write_table(rows_path(folder, number), pa.table(columns))


def read_rows(folder: Path, number: int, expected: int) -> ShardRows:
    """Read a shard's table. Raises InputError if it is damaged or has another number of rows."""
    path = rows_path(folder, number)
    table = read_table(path)
    if {f.name: f.type for f in table.schema} != COLUMNS or table.num_rows != expected:
        raise InputError(
            f"{path} has {table.num_rows} rows of {table.column_names}, not {expected} of "
            f"{list(COLUMNS)}; {AGAIN}"
        )
    return ShardRows(
        table["prompt_id"].to_pylist(),
        *(table[name].to_numpy() for name in ("norm", "length", "tokens")),
    )


def map_matrix(path: Path, rows: int, identity: StoreIdentity) -> NDArray[Any]:
    """Map a shard's sketches [R, D] into memory.

    Raises InputError if the file is cut off, has bytes too many, or another shape or dtype.
    """
    require_file(path)
    try:
        # Copy-on-write, because torch wants writable arrays; nothing is ever written.
        matrix = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is cut off or damaged ({error}); {AGAIN}") from error
    expected = (rows, identity.dim)
    if matrix.shape != expected or matrix.dtype != np.dtype(identity.dtype):
        raise InputError(
            f"{path} holds {matrix.dtype} {list(matrix.shape)}, not {identity.dtype} "
            f"{list(expected)}; {AGAIN}"
        )
    if matrix.offset + matrix.nbytes != path.stat().st_size:
        raise InputError(f"{path} has bytes after its {rows} rows; {AGAIN}")
    return matrix
