"""Rollout files: groups of responses as one flat Parquet table with one row per response.

Reading works on Arrow buffers and NumPy offsets, so that tens of thousands of responses take well
under a second. Files from other tools can be read: types are cast if that is safe, sampling columns
may be missing, unknown columns survive a rewrite (`read_side_columns`), and rows may be in any
order. What would spoil a gradient later is refused here, naming file, row and column. This module
loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.arguments import ROLLOUTS_FIX, require_kind, require_list_of
from cropi.errors import InputError
from cropi.prompts.row_files import holds_text_rows
from cropi.rollouts.number_checks import require_sound_numbers
from cropi.rollouts.rollout_rows import RolloutRows, read_rollout_rows
from cropi.schema import (
    OPTIONAL_ROLLOUT_COLUMNS,
    ROLLOUT_COLUMNS,
    PolicyIdentity,
    Response,
    RolloutGroup,
    Sampling,
)
from cropi.store.columns import Columns
from cropi.store.files import read_table, table_metadata, write_table
from cropi.store.remote import local_copy
from cropi.store.run_directory import pool_rollouts
from cropi.store.tables import count_in
from cropi.text import remote_url

MAX_NEW_TOKENS = "cropi.max_new_tokens"
REQUIRED = ("prompt_id", "prompt_ids", "response_ids", "logprobs", "reward")
_READ_COLUMNS = frozenset((*ROLLOUT_COLUMNS, *OPTIONAL_ROLLOUT_COLUMNS))


def read_rollouts(path: str | Path) -> list[RolloutGroup]:
    """Read rollouts, groups in order of first appearance, responses by `response_index`.

    `path` may be a URL, such as `s3://bucket/rollouts.parquet`.

    Missing sampling columns mean temperature 1.0, top_p 1.0, top_k 0, with one warning; a missing
    `reward_status` means ok if the reward is finite, else error.

    Raises InputError naming file, row (from 0) and column of the first thing that is wrong.
    """
    require_kind(path, (str, Path), "path", "give the path of one file of rollouts")
    table, columns = _open(path)
    rows = read_rollout_rows(columns)
    order = _row_order(columns)
    given = table_metadata(table).get(MAX_NEW_TOKENS)
    limit = Sampling().max_new_tokens if given is None else count_in(path, MAX_NEW_TOKENS, given)
    return [_group(columns, rows, group, limit) for group in order]


def require_storable(groups: Sequence[RolloutGroup], name: str) -> None:
    """Raise InputError, naming the row and column, for groups that no file of them could hold.

    A group that comes more than once is joined before it is stored, and passes.
    """
    for group in groups:
        try:
            table = rollout_table([group])
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(
                f"{name}: the group of prompt {group.prompt_id} cannot be stored ({error})"
            ) from error
        if group.responses:
            read_rollout_rows(Columns(table, f"{name}, prompt {group.prompt_id}"))


def as_groups(rollouts: Sequence[RolloutGroup] | str | Path) -> Sequence[RolloutGroup]:
    """Return groups as they are, or read them from a file.

    Raises InputError for anything else, and for numbers that nothing can be computed from.
    """
    if isinstance(rollouts, str | Path):
        return read_rollouts(Path(rollouts))
    require_list_of(rollouts, RolloutGroup, "rollouts", ROLLOUTS_FIX)
    require_sound_numbers(rollouts)
    return rollouts


def read_side_columns(path: str | Path) -> pa.Table | None:
    """Return the columns that cropi does not use, so that a rewritten file can keep them.

    The table has `prompt_id`, `response_index` (the position in the group that `read_rollouts`
    returns) and the unknown columns; None if there are none.
    """
    table, columns = _open(path)
    unknown = [name for name in table.column_names if name not in _READ_COLUMNS]
    if not unknown:
        return None
    order = _row_order(columns)
    rows = np.concatenate(order)
    places = np.concatenate([np.arange(len(group), dtype=np.int32) for group in order])
    ids = pa.array(columns.strings("prompt_id"), pa.string()).take(pa.array(rows))
    side = table.select(unknown).take(pa.array(rows))
    return side.add_column(0, "prompt_id", ids).add_column(1, "response_index", pa.array(places))


def _open(path: str | Path) -> tuple[pa.Table, Columns]:
    """Read a rollout file, which may be a URL; raises InputError without the required columns."""
    with local_copy(path) as file:
        _require_there(Path(file))
        table = _read(Path(file))
    columns = Columns(table, remote_url(path) or str(path))
    columns.require(REQUIRED)
    return table, columns


def _read(file: Path) -> pa.Table:
    """The table in a file; the error says what reads rollouts that are written otherwise."""
    try:
        return read_table(file)
    except InputError as error:
        if not file.is_file() or not holds_text_rows(file):
            raise
        raise InputError(f"{error}; only `cropi rank` reads rollouts in other formats") from error


def _require_there(file: Path) -> None:
    """Raise InputError for a pool's rollouts that a run has elsewhere, or has lost."""
    run = file.parent.parent
    if file.exists() or (file.parent.name, file.name) != ("rollouts", "pool.parquet"):
        return
    if not (run / "manifest.json").is_file():
        return
    elsewhere = pool_rollouts(run)
    if elsewhere is None:
        raise InputError(
            f"{file} does not exist: the run has not come so far, or it was removed; `cropi run` "
            "of its config samples it, if a strategy looks at rollouts"
        )
    raise InputError(
        f"{file} does not exist: the run rolled out only the part of its pool that its strategy "
        f"asked for; give {elsewhere}"
    )


def write_rollouts(
    path: str | Path,
    groups: Sequence[RolloutGroup],
    metadata: Mapping[str, str] | None = None,
    side_columns: pa.Table | None = None,
) -> None:
    """Write groups atomically; equal arguments give equal bytes.

    `side_columns`, from `read_side_columns`, are joined by prompt and position in the group; rows
    that they lack are null.
    """
    table = rollout_table(groups)
    if side_columns is not None:
        table = _with_side_columns(table, side_columns)
    limits = {group.sampling.max_new_tokens for group in groups}
    limit = {MAX_NEW_TOKENS: str(max(limits))} if limits else {}
    write_table(Path(path), table, {**limit, **(metadata or {})})


def rollout_table(groups: Sequence[RolloutGroup]) -> pa.Table:
    """Return the flat table of docs/method.md, columns in the order of ROLLOUT_COLUMNS.

    Those of OPTIONAL_ROLLOUT_COLUMNS follow if a response or group differs from the default.
    """
    pairs = [(group, response) for group in groups for response in group.responses]
    places = [place for group in groups for place in range(len(group.responses))]
    responses = [response for _, response in pairs]
    values: dict[str, pa.Array] = {
        "prompt_id": pa.array([g.prompt_id for g, _ in pairs], pa.string()),
        "response_index": pa.array(places, pa.int32()),
        "prompt_ids": _list_array([g.prompt_ids for g, _ in pairs], pa.int32()),
        "response_ids": _list_array([r.ids for r in responses], pa.int32()),
        "logprobs": _list_array([r.logprobs for r in responses], pa.float32()),
        "text": pa.array([r.text for r in responses], pa.string()),
        "finish_reason": pa.array([r.finish_reason for r in responses], pa.string()),
        "reward": pa.array([r.reward for r in responses], pa.float64()),
        "reward_status": pa.array([r.reward_status for r in responses], pa.string()),
        "temperature": pa.array([g.sampling.temperature for g, _ in pairs], pa.float64()),
        "top_p": pa.array([g.sampling.top_p for g, _ in pairs], pa.float64()),
        "top_k": pa.array([g.sampling.top_k for g, _ in pairs], pa.int32()),
        "seed": pa.array([g.seed for g, _ in pairs], pa.int64()),
        "policy_name": pa.array([g.policy.name for g, _ in pairs], pa.string()),
        "policy_revision": pa.array([g.policy.revision for g, _ in pairs], pa.string()),
        "policy_step": pa.array([g.policy.step for g, _ in pairs], pa.int64()),
        "exact": pa.array([g.exact for g, _ in pairs], pa.bool_()),
    }
    assert tuple(values) == ROLLOUT_COLUMNS
    return pa.table({**values, **_optional_columns(pairs)})


def _optional_columns(pairs: Sequence[tuple[RolloutGroup, Response]]) -> dict[str, pa.Array]:
    """Return the optional columns that are not empty, null if a response has no such field."""
    columns = {}
    masks, versions = [[getattr(r, n) for _, r in pairs] for n in ("loss_mask", "policy_versions")]
    if any(mask is not None for mask in masks):
        columns["loss_mask"] = pa.array(masks, pa.list_(pa.uint8()))
    if any(version is not None for version in versions):
        columns["policy_versions"] = pa.array(versions, pa.list_(pa.int32()))
    if any(group.logprob_mode != "processed" for group, _ in pairs):
        columns["logprob_mode"] = pa.array([g.logprob_mode for g, _ in pairs], pa.string())
    return columns


def _row_order(columns: Columns) -> list[NDArray[np.int64]]:
    """Return the row numbers of each group, groups by first appearance, rows by response_index."""
    ids = columns.strings("prompt_id")
    codes: dict[str, int] = {}
    group_of = np.array([codes.setdefault(i, len(codes)) for i in ids], dtype=np.int64)
    if "response_index" in columns:
        index = columns.numbers("response_index", pa.int64())
    else:
        index = np.arange(len(ids), dtype=np.int64)
    order = np.lexsort((index, group_of))
    same = (np.diff(group_of[order]) == 0) & (np.diff(index[order]) == 0)
    repeated = np.zeros(len(ids), dtype=bool)
    repeated[order[1:][same]] = True
    columns.require_no_row(
        "response_index",
        repeated,
        "appears twice for its prompt; number each prompt's responses",
        index,
    )
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)


def _group(
    columns: Columns, rows: RolloutRows, members: NDArray[np.int64], max_new_tokens: int
) -> RolloutGroup:
    """Build one group from its rows, which must agree on prompt and sampling."""
    first, *others = members.tolist()
    prompt = rows.prompt_ids[first]
    prompt_bytes, sampling = prompt.tobytes(), rows.sampling[first]
    for row in others:
        if rows.prompt_ids[row].tobytes() != prompt_bytes:
            raise columns.error(
                row, "prompt_ids", f"differs from row {first} of the same prompt_id"
            )
        if rows.sampling[row] != sampling:
            raise columns.error(
                row,
                "temperature, top_p or top_k",
                f"differs from row {first} of the same prompt_id; give each its own prompt_id",
            )
        if rows.logprob_modes[row] != rows.logprob_modes[first]:
            raise columns.error(
                row,
                "logprob_mode",
                f"differs from row {first} of the same prompt_id; give each its own prompt_id",
            )
    temperature, top_p, top_k = sampling
    return RolloutGroup(
        prompt_id=columns.strings("prompt_id")[first],
        prompt_ids=prompt,
        responses=[_response(rows, row) for row in members.tolist()],
        sampling=Sampling(temperature, top_p, top_k, max_new_tokens),
        policy=_policy(columns, first),
        seed=int(columns.numbers("seed", pa.int64(), missing=0)[first]),
        exact=all(columns.flags("exact", missing=True)[row] for row in members.tolist()),
        logprob_mode=rows.logprob_modes[first],
    )


def _response(rows: RolloutRows, row: int) -> Response:
    status = rows.statuses[row]
    return Response(
        ids=rows.response_ids[row],
        logprobs=rows.logprobs[row],
        text=rows.texts[row],
        # Other tools give more reasons; what matters later is whether the limit cut it off.
        finish_reason="length" if rows.finish_reasons[row] == "length" else "stop",
        reward=float(rows.rewards[row]) if status == "ok" else float("nan"),
        reward_status=status,
        loss_mask=rows.loss_masks[row],
        policy_versions=rows.policy_versions[row],
    )


def _policy(columns: Columns, row: int) -> PolicyIdentity:
    return PolicyIdentity(
        columns.strings("policy_name", missing="unknown", nulls="unknown")[row],
        columns.strings("policy_revision", missing="", nulls="")[row],
        int(columns.numbers("policy_step", pa.int64(), missing=0)[row]),
    )


def _list_array(rows: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    """Return a list column, with 64-bit offsets only if 32 bits do not suffice."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.concatenate(rows) if rows else np.zeros(0)
    values = pa.array(flat.astype(kind.to_pandas_dtype(), copy=False), kind)
    if offsets[-1] < 2**31:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _with_side_columns(table: pa.Table, side: pa.Table) -> pa.Table:
    """Append the side table's columns to the rows they belong to."""

    def keys(source: pa.Table) -> list[tuple[Any, Any]]:
        named = (source["prompt_id"].to_pylist(), source["response_index"].to_pylist())
        return list(zip(*named, strict=True))

    row_of = {key: row for row, key in enumerate(keys(side))}
    rows = pa.array([row_of.get(key) for key in keys(table)], pa.int64())
    for name in side.column_names:
        if name not in _READ_COLUMNS:
            table = table.append_column(name, side[name].take(rows))
    return table
