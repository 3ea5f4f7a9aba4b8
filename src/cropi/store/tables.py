"""Scores and selections as Parquet files (the contracts of docs/method.md)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import SCORED, InfluenceEstimate, Selection, unique
from cropi.store.files import read_table, table_metadata, write_table

if TYPE_CHECKING:
    import pyarrow as pa

ERROR_SUFFIX = "_standard_error"
"""What is appended to a validation set's name for the column of its standard errors."""
RESERVED = ("prompt_id", "norm", "tokens", "group_size", "status")
"""Columns of a score file that are not validation sets."""


def require_set_names(names: Iterable[str], where: str = "a score file") -> None:
    """Raise InputError if a validation set has the name of another column of a score file."""
    for name in names:
        if name in RESERVED or name.endswith(ERROR_SUFFIX):
            raise InputError(
                f"a validation set cannot be called {name!r}, which is a column of its own in "
                f"{where}; give it another name"
            )


def write_scores(
    path: Path, estimate: InfluenceEstimate, metadata: dict[str, str] | None = None
) -> None:
    """Write one row per prompt of the pool, in its order.

    prompt_id, norm, per validation set one float32 cosine under its name (null: not measured) and
    one float64 <set>_standard_error, tokens, group_size and status. Raises InputError if a
    validation set is called like one of the other columns.
    """
    import pyarrow as pa

    require_set_names(estimate.mean, str(path))
    columns: dict[str, Any] = {
        "prompt_id": pa.array(estimate.prompt_ids, pa.string()),
        "norm": _nullable(estimate.norms, pa.float32()),
    }
    for name, mean in estimate.mean.items():
        columns[name] = _nullable(mean, pa.float32())
    for name, error in estimate.standard_error.items():
        columns[name + ERROR_SUFFIX] = _nullable(error, pa.float64())
    columns |= {
        "tokens": pa.array(estimate.tokens, pa.int64()),
        "group_size": pa.array(estimate.group_size, pa.int32()),
        "status": pa.array(estimate.status, pa.string()),
    }
    about = {
        "cropi.pool_size": str(estimate.pool_size),
        "cropi.unlisted": json.dumps(estimate.unlisted),
        "cropi.influence": json.dumps(estimate.identity, sort_keys=True),
    }
    write_table(path, pa.table(columns), {**about, **(metadata or {})})


def read_scores(path: Path) -> InfluenceEstimate:
    """Read a score file; see `scores_from`."""
    return scores_from(read_table(path), path)


def scores_from(table: pa.Table, path: Path) -> InfluenceEstimate:
    """The estimate in a score file's table; every other column of floats is a validation set.

    Files that list scored prompts only, without `status`, are read too. Raises InputError, naming
    `path`, if the table is not one of scores.
    """
    about = table_metadata(table)
    targets = _targets(table)
    if "prompt_id" not in table.column_names or not targets:
        raise InputError(
            f"{path} is not a score file: it needs prompt_id and one float column per validation "
            f"set, and has {table.column_names}; make one with `cropi score`"
        )
    ids = [str(i) for i in table["prompt_id"].to_pylist()]
    status = table["status"].to_pylist() if "status" in table.column_names else [SCORED] * len(ids)
    scored = np.array([each == SCORED for each in status], dtype=bool)
    if not scored.any():
        raise InputError(
            f"{path} scores no prompt ({len(ids)} rows); score a pool with informative prompts"
        )
    if not unique(ids):
        raise InputError(f"{path} has a prompt_id on more than one row; each may be scored once")
    mean = {name: _floats(table, name).astype(np.float32) for name in targets}
    for name, values in mean.items():
        if not np.isfinite(values[scored]).all():
            raise InputError(f"{path}: column {name} holds NaN or infinite values; score again")
    if "cropi.pool_size" not in about:
        warnings.warn(
            f"{path} does not say how large the pool is (its metadata lacks cropi.pool_size); the "
            f"ratio is taken of the {len(ids)} scored prompts",
            stacklevel=3,
        )
    return InfluenceEstimate(
        prompt_ids=ids,
        mean=mean,
        standard_error={name: _floats(table, name + ERROR_SUFFIX) for name in targets},
        norms=_floats(table, "norm", 1.0).astype(np.float32),
        tokens=_counts(table, "tokens").astype(np.int64),
        group_size=_counts(table, "group_size").astype(np.int32),
        status=status,
        unlisted=_unlisted(about, len(ids)),
        identity=json.loads(about.get("cropi.influence", "{}")),
    )


def _targets(table: pa.Table) -> list[str]:
    """The columns that hold a validation set's cosines."""
    import pyarrow as pa

    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    errors = {name + ERROR_SUFFIX for name in floats}
    return [name for name in floats if name not in RESERVED and name not in errors]


def _unlisted(about: Mapping[str, str], rows: int) -> dict[str, int]:
    """Prompts of the pool without a row, by reason; older files call them skipped."""
    by_reason: dict[str, int] = json.loads(
        about.get("cropi.unlisted", about.get("cropi.skipped", "{}"))
    )
    rest = int(about.get("cropi.pool_size", rows)) - rows - sum(by_reason.values())
    return by_reason | {"not listed": rest} if rest > 0 else by_reason


def _floats(table: pa.Table, name: str, default: float = math.nan) -> NDArray[np.float64]:
    """A column with NaN for null, or `default` everywhere where there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, default)
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _counts(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of counts; zeros where there is no such column."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.int64)
    return np.asarray(table[name].to_numpy(), dtype=np.int64)


def _nullable(values: NDArray[np.floating], kind: pa.DataType) -> pa.Array:
    """A column with null for NaN."""
    import pyarrow as pa

    return pa.array(values, kind, mask=np.isnan(values))


def write_selection(
    path: Path, selection: Selection, metadata: dict[str, str] | None = None
) -> None:
    """Write prompt_id, rank (from 1), score and each set's rank as rank_<set>."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "prompt_id": pa.array(selection.prompt_ids, pa.string()),
        "rank": pa.array(np.arange(1, len(selection.prompt_ids) + 1), pa.int32()),
        "score": pa.array(selection.scores, pa.float64()),
    }
    columns |= {f"rank_{n}": pa.array(r, pa.int32()) for n, r in selection.ranks.items()}
    write_table(
        path,
        pa.table(columns),
        {
            "cropi.notes": json.dumps(selection.notes),
            "cropi.negative": str(selection.negative),
            **(metadata or {}),
        },
    )


def read_selection(path: Path) -> Selection:
    """Read a selection file. Raises InputError if it is not one, or selects nothing."""
    table = read_table(path)
    if "prompt_id" not in table.column_names or table.num_rows == 0:
        raise InputError(
            f"{path} selects nothing: it needs a prompt_id column with at least one row, and has "
            f"{table.num_rows} rows of {table.column_names}; make one with `cropi select`"
        )
    if "rank" in table.column_names:
        table = table.sort_by("rank")
    ids = [str(i) for i in table["prompt_id"].to_pylist()]
    if not unique(ids):
        raise InputError(f"{path} has a prompt_id on more than one row; select each prompt once")
    scores = table["score"].to_numpy() if "score" in table.column_names else np.zeros(len(ids))
    ranks = {
        n.removeprefix("rank_"): table[n].to_numpy().astype(np.int32)
        for n in table.column_names
        if n.startswith("rank_")
    }
    about = table_metadata(table)
    notes = json.loads(about.get("cropi.notes", "[]"))
    return Selection(ids, scores, ranks, int(about.get("cropi.negative", 0)), notes)
