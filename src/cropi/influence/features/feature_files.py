"""The files of a feature store: its identity, and shards of sketches with a table of their rows.

`identity.json` says what a store was made from, and what two stores must share to be compared.
`shard-00000.npy` holds unit sketches times sqrt(dim) [rows, dim], so that it can be mapped into
memory. A coordinate of a unit vector is about 1/sqrt(dim), and most of those of 8,192 dimensions
and more would come near float16's subnormal numbers, where precision is lost; scaled, they are
about 1, and the largest possible, sqrt(dim), is far below 65,504. `shard-00000.parquet` holds each
row's prompt_id, norm and so on. The table is written last: a matrix without one is what a kill
left behind. `sketch.npz` is the state of a sketch that is fitted to data.

Shape legend: R rows of a shard, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.files import (
    atomic_write,
    content_hash,
    read_table,
    require_file,
    table_metadata,
    write_json,
    write_table,
)

IDENTITY = "identity.json"
SKETCH_FILE = "sketch.npz"
VERSION = 2
COMPARABLE = ("version", "sketch", "sketch_file", "policy", "settings", "dim")
"""Fields that make inner products between two stores meaningful. The others say how much is in a
store and how it is laid out on disk."""
COLUMNS = {
    "prompt_id": pa.string(),
    "norm": pa.float64(),
    "length": pa.float32(),
    "tokens": pa.int32(),
    "status": pa.string(),
}
BELONGS_TO = "cropi.belongs_to"
MATRIX_HASH = "cropi.matrix_hash"
"""Metadata of a shard's table: its store and number, and the hash of its matrix."""
REBUILD_HINT = "delete it and run the same `cropi features` again, which makes what is missing"

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class StoreIdentity:
    """What a store holds, all of it determined before any gradient is computed.

    `sketch` is the sketch's identity, `sketch_file` the hash of a fitted one's state (empty: the
    sketch is not fitted), `policy` a hash of the weights, `settings` the objective and whatever
    else defines a gradient, `preconditioner` the identity of Adam's scales on a target's gradients
    (empty: plain gradients), `rollouts` the hash of the rollout file. `prompts` counts the rows to
    come; `pool_size` and `skipped` count the prompts without a gradient too.
    """

    sketch: Mapping[str, str]
    policy: str
    rollouts: str
    dim: int
    prompts: int
    pool_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    preconditioner: Mapping[str, str] = field(default_factory=dict)
    sketch_file: str = ""
    dtype: Dtype = "float16"
    rows_per_shard: int = 256
    version: int = VERSION

    def shard_indices(self) -> list[range]:
        """Indices into the list of informative prompts, shard by shard."""
        starts = range(0, self.prompts, self.rows_per_shard)
        return [range(s, min(s + self.rows_per_shard, self.prompts)) for s in starts]


def write_identity(folder: Path, identity: StoreIdentity) -> None:
    """Write the identity, atomically."""
    write_json(folder / IDENTITY, asdict(identity))


def read_identity(folder: Path) -> StoreIdentity:
    """Read a store's identity.

    Raises InputError if there is no store, or one that this version cannot read.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise InputError(
            f"{folder} is not a feature store (it has no {IDENTITY}); make one with "
            "`cropi features`"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["version"] != VERSION:
            raise InputError(
                f"{path} is of version {fields['version']}, and this cropi reads {VERSION}; make "
                "the features again"
            )
        return _checked(StoreIdentity(**fields))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); make the features again in an "
            "empty directory"
        ) from error


def _checked(identity: StoreIdentity) -> StoreIdentity:
    """The identity as it was read. Raises ValueError or TypeError if a field cannot be right."""
    sizes = ("dim", "prompts", "pool_size", "rows_per_shard")
    texts = ("policy", "rollouts", "sketch_file")
    for name in sizes:
        value = getattr(identity, name)
        if type(value) is not int or not 0 < value < 2**40:
            raise ValueError(f"{name} is {value!r}, not a positive whole number")
    for name in texts:
        if not isinstance(getattr(identity, name), str):
            raise TypeError(f"{name} is not text")
    for name in ("sketch", "settings", "skipped", "preconditioner"):
        if not isinstance(getattr(identity, name), dict):
            raise TypeError(f"{name} is not an object")
    if identity.dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {identity.dtype!r}, not float16 or float32")
    if identity.prompts > identity.pool_size:
        raise ValueError(f"{identity.prompts} prompts of {identity.pool_size} in the pool")
    if "objective" not in identity.settings:
        raise ValueError("settings have no objective")
    return identity


def differences(
    one: StoreIdentity, other: StoreIdentity, names: tuple[str, ...] | None = None
) -> list[str]:
    """Fields in which two identities differ, as "field a, not b"; `names` None means all."""
    flat = [
        _flat("", {k: v for k, v in asdict(i).items() if not names or k in names})
        for i in (one, other)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{key} {flat[0].get(key)!r}, not {flat[1].get(key)!r}"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]


def require_comparable(pool: StoreIdentity, other: StoreIdentity, what: str) -> None:
    """Raise InputError, saying `what` and which fields differ, unless both share a sketch space."""
    differing = differences(other, pool, COMPARABLE)
    if differing:
        raise InputError(
            f"{what}: {'; '.join(differing)}; make both with the same model, sketch, seed and "
            "settings, and a target's with --like and the pool's features if the sketch is fitted"
        )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(f"{prefix}{key}.", value)
        else:
            flat[prefix + key] = value
    return flat


@dataclass(frozen=True)
class ShardRows:
    """The rows of a shard beside their sketches.

    `norms` float64 [R] are the gradients' L2 norms, `lengths` float32 [R] those of their
    sketches, `tokens` int32 [R] the prompts' sampled tokens. `statuses` [R] say "scored", or why a
    prompt was left out, whose row is zero.
    """

    prompt_ids: list[str]
    norms: NDArray[np.float64]
    lengths: NDArray[np.float32]
    tokens: NDArray[np.int32]
    statuses: list[str]


def matrix_path(folder: Path, number: int) -> Path:
    """The file of shard `number`'s sketches."""
    return folder / f"shard-{number:05d}.npy"


def rows_path(folder: Path, number: int) -> Path:
    """The file of shard `number`'s table of rows."""
    return folder / f"shard-{number:05d}.parquet"


def write_shard(
    folder: Path,
    number: int,
    matrix_RD: NDArray[Any],
    rows: ShardRows,
    identity: StoreIdentity,
) -> None:
    """Write a shard; it exists from the moment its table has its name.

    The table says which store it belongs to, as which shard, and the hash of its matrix.
    """
    with atomic_write(matrix_path(folder, number)) as part, part.open("wb") as handle:
        np.lib.format.write_array(handle, matrix_RD, allow_pickle=False)
    values = (rows.prompt_ids, rows.norms, rows.lengths, rows.tokens, rows.statuses)
    columns = {
        name: pa.array(column, kind)
        for (name, kind), column in zip(COLUMNS.items(), values, strict=True)
    }
    about = {
        BELONGS_TO: _place_in_store(identity, number),
        MATRIX_HASH: content_hash(matrix_path(folder, number)),
    }
    write_table(rows_path(folder, number), pa.table(columns), about)


def _place_in_store(identity: StoreIdentity, number: int) -> str:
    return f"shard {number} of {fingerprint(asdict(identity))}"


def read_shard_rows(folder: Path, number: int, identity: StoreIdentity) -> ShardRows:
    """Read a shard's table.

    Raises InputError if it or its matrix is damaged, belongs to another store or shard, or has
    another number of rows.
    """
    path, expected = rows_path(folder, number), len(identity.shard_indices()[number])
    table = read_table(path)
    about = table_metadata(table)
    if BELONGS_TO not in about:
        raise InputError(
            f"{path} does not say which store it belongs to; it is damaged or of an older version; "
            f"{REBUILD_HINT}"
        )
    if about[BELONGS_TO] != _place_in_store(identity, number):
        raise InputError(
            f"{path} is not {_place_in_store(identity, number).split(' of ')[0]} of the store that "
            f"{folder / IDENTITY} describes: one of the two was changed or comes from another "
            f"store; restore {IDENTITY}, or delete the folder and make the features again"
        )
    matrix = matrix_path(folder, number)
    require_file(matrix)
    if content_hash(matrix) != about.get(MATRIX_HASH):
        raise InputError(f"{matrix} is cut off or damaged (hash mismatch); {REBUILD_HINT}")
    if {f.name: f.type for f in table.schema} != COLUMNS or table.num_rows != expected:
        raise InputError(
            f"{path} has {table.num_rows} rows of {table.column_names}, not {expected} of "
            f"{list(COLUMNS)}; {REBUILD_HINT}"
        )
    norms, lengths, tokens = (table[name].to_numpy() for name in ("norm", "length", "tokens"))
    ids, statuses = (table[name].to_pylist() for name in ("prompt_id", "status"))
    return ShardRows(ids, norms, lengths, tokens, statuses)


def map_matrix(path: Path, rows: int, identity: StoreIdentity) -> NDArray[Any]:
    """Map a shard's sketches [R, D] into memory.

    Raises InputError if the file is cut off, has extra bytes, or another shape or dtype.
    """
    require_file(path)
    try:
        # Copy-on-write, because torch needs writable arrays; nothing is ever written.
        matrix = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is cut off or damaged ({error}); {REBUILD_HINT}") from error
    expected = (rows, identity.dim)
    if matrix.shape != expected or matrix.dtype != np.dtype(identity.dtype):
        raise InputError(
            f"{path} holds {matrix.dtype} {list(matrix.shape)}, not {identity.dtype} "
            f"{list(expected)}; {REBUILD_HINT}"
        )
    if matrix.offset + matrix.nbytes != path.stat().st_size:
        raise InputError(f"{path} has bytes after its {rows} rows; {REBUILD_HINT}")
    return matrix
