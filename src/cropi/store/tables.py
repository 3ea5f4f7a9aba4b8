"""Scores and selections as Parquet files (the contracts of docs/method.md)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.schema import ScoreTable, Selection, unique
from cropi.store.files import read_table, table_metadata, write_table

RESERVED = ("prompt_id", "norm")


def write_scores(path: Path, scores: ScoreTable, metadata: dict[str, str] | None = None) -> None:
    """Write one row an informative prompt: prompt_id, norm, one float32 cosine a target.

    Raises InputError if a target is called like one of the other columns.
    """
    import pyarrow as pa

    if taken := sorted(set(RESERVED) & set(scores.cosines)):
        raise InputError(
            f"a validation set cannot be called {taken[0]!r}, which is a column of its own in "
            f"{path}; give it another name"
        )
    columns: dict[str, Any] = {
        "prompt_id": pa.array(scores.prompt_ids, pa.string()),
        "norm": pa.array(scores.norms, pa.float32()),
    }
    columns |= {n: pa.array(c, pa.float32()) for n, c in scores.cosines.items()}
    about = {
        "cropi.pool_size": str(scores.pool_size),
        "cropi.skipped": json.dumps(scores.skipped),
        "cropi.influence": json.dumps(scores.identity, sort_keys=True),
    }
    write_table(path, pa.table(columns), {**about, **(metadata or {})})


def read_scores(path: Path) -> ScoreTable:
    """Read a score file; every column beside prompt_id and norm that holds floats is a target.

    Raises InputError if it is no score file.
    """
    import pyarrow as pa

    table = read_table(path)
    about = table_metadata(table)
    targets = [
        f.name for f in table.schema if f.name not in RESERVED and pa.types.is_floating(f.type)
    ]
    if "prompt_id" not in table.column_names or not targets:
        raise InputError(
            f"{path} is no score file: it needs prompt_id and one float column a validation set, "
            f"and has {table.column_names}; make one with `cropi score`"
        )
    if table.num_rows == 0:
        raise InputError(f"{path} scores no prompt (0 rows); score a pool with informative prompts")
    ids = [str(i) for i in table["prompt_id"].to_pylist()]
    if not unique(ids):
        raise InputError(f"{path} has a prompt_id on more than one row; each may be scored once")
    cosines = {n: table[n].to_numpy().astype(np.float32) for n in targets}
    for name, values in cosines.items():
        if not np.isfinite(values).all():
            raise InputError(f"{path}: column {name} holds NaN or infinite values; score again")
    norms = table["norm"].to_numpy() if "norm" in table.column_names else np.ones(len(ids))
    if "cropi.pool_size" not in about:
        warnings.warn(
            f"{path} does not say how large the pool is (its metadata lacks cropi.pool_size); the "
            f"ratio is taken of the {len(ids)} scored prompts",
            stacklevel=2,
        )
    return ScoreTable(
        prompt_ids=ids,
        cosines=cosines,
        norms=norms.astype(np.float32),
        pool_size=int(about.get("cropi.pool_size", len(ids))),
        skipped=json.loads(about.get("cropi.skipped", "{}")),
        identity=json.loads(about.get("cropi.influence", "{}")),
    )


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
    """Read a selection file. Raises InputError if it is none, or selects nothing."""
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
