"""The rollout store: groups of responses as one flat Parquet table, a row a response.

Reading works on Arrow buffers and NumPy offsets, so that tens of thousands of responses take well
under a second. Files from other tools are welcome: widths are cast where that is safe, sampling
columns may be missing, unknown columns survive a rewrite (`read_side_columns`), and rows may stand
in any order. What would poison a gradient later is refused here, naming file, row and column.
This module loads neither torch nor transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.rollouts.columns import Columns, Ragged
from cropi.schema import (
    OPTIONAL_ROLLOUT_COLUMNS,
    ROLLOUT_COLUMNS,
    LogprobMode,
    PolicyIdentity,
    Response,
    RolloutGroup,
    Sampling,
)
from cropi.store.files import read_table, table_metadata, write_table

MAX_NEW_TOKENS = "cropi.max_new_tokens"
REQUIRED = ("prompt_id", "prompt_ids", "response_ids", "logprobs", "reward")
STATUSES = ("ok", "timeout", "error")
LOGPROB_MODES: tuple[LogprobMode, ...] = get_args(LogprobMode)
_READ_COLUMNS = frozenset((*ROLLOUT_COLUMNS, *OPTIONAL_ROLLOUT_COLUMNS))
_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def read_rollouts(path: str | Path) -> list[RolloutGroup]:
    """Read rollouts, groups in order of first appearance, responses by `response_index`.

    Missing sampling columns mean temperature 1.0, top_p 1.0, top_k 0 and are warned of once; a
    missing `reward_status` means ok where the reward is finite, else error.

    Raises InputError naming file, row (from 0) and column of the first thing that is wrong.
    """
    path = Path(path)
    table = read_table(path)
    columns = Columns(table, path)
    columns.require(REQUIRED)
    rows = _read_rows(columns)
    order = _row_order(columns)
    limit = int(table_metadata(table).get(MAX_NEW_TOKENS, Sampling().max_new_tokens))
    return [_group(columns, rows, group, limit) for group in order]


def as_groups(rollouts: Sequence[RolloutGroup] | str | Path) -> Sequence[RolloutGroup]:
    """Return groups as they are, or read them from a file."""
    return read_rollouts(Path(rollouts)) if isinstance(rollouts, str | Path) else rollouts


def read_side_columns(path: str | Path) -> pa.Table | None:
    """Return the columns that cropi does not know, to be kept when the file is rewritten.

    The table has `prompt_id`, `response_index` (the place in the group as `read_rollouts` returns
    it) and the unknown columns; None if there are none.
    """
    path = Path(path)
    table = read_table(path)
    unknown = [name for name in table.column_names if name not in _READ_COLUMNS]
    if not unknown:
        return None
    columns = Columns(table, path)
    columns.require(REQUIRED)
    order = _row_order(columns)
    rows = np.concatenate(order)
    places = np.concatenate([np.arange(len(group), dtype=np.int32) for group in order])
    ids = pa.array(columns.strings("prompt_id"), pa.string()).take(pa.array(rows))
    kept = table.select(unknown).take(pa.array(rows))
    return kept.add_column(0, "prompt_id", ids).add_column(1, "response_index", pa.array(places))


def write_rollouts(
    path: str | Path,
    groups: Sequence[RolloutGroup],
    metadata: Mapping[str, str] | None = None,
    side_columns: pa.Table | None = None,
) -> None:
    """Write groups atomically; equal arguments give equal bytes.

    `side_columns`, from `read_side_columns`, are joined by prompt and place in the group; rows
    that they do not know are null.
    """
    table = rollout_table(groups)
    if side_columns is not None:
        table = _with_side_columns(table, side_columns)
    limits = {group.sampling.max_new_tokens for group in groups}
    known = {MAX_NEW_TOKENS: str(max(limits))} if limits else {}
    write_table(Path(path), table, {**known, **(metadata or {})})


def rollout_table(groups: Sequence[RolloutGroup]) -> pa.Table:
    """Return the flat table of docs/method.md, columns in the order of ROLLOUT_COLUMNS.

    Those of OPTIONAL_ROLLOUT_COLUMNS follow where a response or group has something else than the
    default to store.
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
    """Return the optional columns that hold something, null where a response has no such field."""
    columns = {}
    masks, versions = [[getattr(r, n) for _, r in pairs] for n in ("loss_mask", "policy_versions")]
    if any(mask is not None for mask in masks):
        columns["loss_mask"] = pa.array(masks, pa.list_(pa.uint8()))
    if any(version is not None for version in versions):
        columns["policy_versions"] = pa.array(versions, pa.list_(pa.int32()))
    if any(group.logprob_mode != "processed" for group, _ in pairs):
        columns["logprob_mode"] = pa.array([g.logprob_mode for g, _ in pairs], pa.string())
    return columns


@dataclass(slots=True)
class _Rows:
    """The file's columns as arrays and lists, a place a row."""

    prompt_ids: Ragged
    response_ids: Ragged
    logprobs: Ragged
    rewards: NDArray[np.float64]
    statuses: list[Any]
    texts: list[Any]
    finish_reasons: list[Any]
    sampling: list[tuple[float, float, int]]
    loss_masks: list[NDArray[np.uint8] | None]
    policy_versions: list[NDArray[np.int32] | None]
    logprob_modes: list[LogprobMode]


def _read_rows(columns: Columns) -> _Rows:
    """Decode and check everything that concerns one row alone."""
    rewards = columns.numbers("reward", pa.float64(), missing=float("nan"), nulls=float("nan"))
    statuses = _statuses(columns, rewards)
    prompt_ids = columns.ragged("prompt_ids", pa.int32())
    response_ids = columns.ragged("response_ids", pa.int32())
    logprobs = columns.ragged("logprobs", pa.float32())
    columns.require_no_row("prompt_ids", prompt_ids.lengths == 0, "is empty; give the prompt's ids")
    for name, ids in (("prompt_ids", prompt_ids), ("response_ids", response_ids)):
        columns.require_no_row(name, ids.any_of(ids.values < 0), "holds a negative token id")
    columns.require_no_row(
        "logprobs",
        response_ids.lengths != logprobs.lengths,
        "differs in length from response_ids; give one log-prob a token",
    )
    masks = _loss_masks(columns, response_ids)
    _zero_masked_logprobs(logprobs, masks)
    is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
    columns.require_no_row(
        "logprobs",
        logprobs.any_of(~np.isfinite(logprobs.values)) & is_ok,
        "holds NaN or infinity in a row whose reward_status is ok; fix it, or mark it as error",
    )
    sampling = _sampling_rows(columns)
    return _Rows(
        prompt_ids,
        response_ids,
        logprobs,
        rewards,
        statuses,
        columns.strings("text", missing="", nulls=""),
        columns.strings("finish_reason", missing="stop", nulls="stop"),
        sampling,
        masks,
        _optional_lists(columns, "policy_versions", "one version", response_ids),
        _logprob_modes(columns, sampling),
    )


def _optional_lists(
    columns: Columns, name: str, unit: str, response_ids: Ragged
) -> list[NDArray[np.int32] | None]:
    """Return a list column with a value per response token; None in rows that have no list."""
    ragged, present = columns.optional_ragged(name, pa.int32())
    columns.require_no_row(
        name,
        present & (ragged.lengths != response_ids.lengths),
        f"differs in length from response_ids; give {unit} per token",
    )
    return [ragged[row] if there else None for row, there in enumerate(present.tolist())]


def _loss_masks(columns: Columns, response_ids: Ragged) -> list[NDArray[np.uint8] | None]:
    """Return each row's mask of the policy's tokens; None in rows that have none."""
    masks = _optional_lists(columns, "loss_mask", "one value", response_ids)
    wrong = [mask is not None and bool(((mask != 0) & (mask != 1)).any()) for mask in masks]
    columns.require_no_row(
        "loss_mask",
        np.array(wrong, dtype=bool),
        "holds a value other than 0 and 1; use 1 for the policy's tokens and 0 for others",
    )
    return [None if mask is None else mask.astype(np.uint8) for mask in masks]


def _zero_masked_logprobs(logprobs: Ragged, masks: Sequence[NDArray[np.uint8] | None]) -> None:
    """Set to 0 what is not finite at tokens that are not the policy's: nothing may read it."""
    for row, mask in enumerate(masks):
        if mask is not None:
            values = logprobs[row]
            values[(mask == 0) & ~np.isfinite(values)] = 0.0


def _logprob_modes(
    columns: Columns, sampling: Sequence[tuple[float, float, int]]
) -> list[LogprobMode]:
    """Return which distribution each row's log-probs are of, warning once of a wrong temperature.

    Importance ratios take both policies at the sampling temperature, which raw log-probs are not.
    """
    modes = columns.strings("logprob_mode", missing="processed", nulls="processed")
    unknown = np.array([mode not in LOGPROB_MODES for mode in modes], dtype=bool)
    columns.require_no_row(
        "logprob_mode", unknown, f"is not one of {', '.join(LOGPROB_MODES)}", shown=modes
    )
    raw = zip(modes, sampling, strict=True)
    row = next((n for n, (mode, drawn) in enumerate(raw) if mode == "raw" and drawn[0] != 1), None)
    if row is not None:
        warnings.warn(
            f"{columns.path} row {row}: logprob_mode is raw and temperature is {sampling[row][0]}, "
            "so importance ratios compare distributions at different temperatures; store the "
            "log-probs of the sampled distribution, or use objective.ratio=none",
            stacklevel=4,
        )
    return cast(list[LogprobMode], modes)


def _statuses(columns: Columns, rewards: NDArray[np.float64]) -> list[str]:
    """Return each row's reward status; a status of ok needs a finite reward."""
    finite = np.isfinite(rewards)
    if "reward_status" not in columns:
        return ["ok" if value else "error" for value in finite]
    statuses = columns.strings("reward_status")
    known = np.array([status in STATUSES for status in statuses], dtype=bool)
    columns.require_no_row(
        "reward_status", ~known, f"is none of {', '.join(STATUSES)}", shown=statuses
    )
    is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
    columns.require_no_row(
        "reward", is_ok & ~finite, "is NaN, infinite or null, and its reward_status is ok"
    )
    return statuses


def _sampling_rows(columns: Columns) -> list[tuple[float, float, int]]:
    """Return (temperature, top_p, top_k) a row, warning once of columns that are not there."""
    missing = [name for name in _SAMPLING_DEFAULTS if name not in columns]
    if missing:
        meant = ", ".join(f"{name} {_SAMPLING_DEFAULTS[name]}" for name in missing)
        warnings.warn(
            f"{columns.path} lacks {', '.join(missing)}; read as {meant}: if it was sampled "
            "otherwise, add the columns",
            stacklevel=4,
        )
    temperature = columns.numbers("temperature", pa.float64(), missing=1.0)
    top_p = columns.numbers("top_p", pa.float64(), missing=1.0)
    top_k = columns.numbers("top_k", pa.int32(), missing=0)
    columns.require_no_row("temperature", ~(temperature > 0), "is not above 0", temperature)
    columns.require_no_row("top_p", ~((top_p > 0) & (top_p <= 1)), "is not in (0, 1]", top_p)
    # vLLM writes -1 for "off".
    top_k = np.maximum(top_k, 0)
    return list(zip(temperature.tolist(), top_p.tolist(), top_k.tolist(), strict=True))


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
    doubled = np.zeros(len(ids), dtype=bool)
    doubled[order[1:][same]] = True
    columns.require_no_row(
        "response_index", doubled, "stands twice for its prompt; number a prompt's responses", index
    )
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)


def _group(
    columns: Columns, rows: _Rows, members: NDArray[np.int64], max_new_tokens: int
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


def _response(rows: _Rows, row: int) -> Response:
    status = rows.statuses[row]
    return Response(
        ids=rows.response_ids[row],
        logprobs=rows.logprobs[row],
        text=rows.texts[row],
        # Other tools know more reasons; what matters later is whether the limit cut it off.
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
    """Return a list column; 64-bit offsets only where 32 do not suffice."""
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

    place = {key: row for row, key in enumerate(keys(side))}
    rows = pa.array([place.get(key) for key in keys(table)], pa.int64())
    for name in side.column_names:
        if name not in _READ_COLUMNS:
            table = table.append_column(name, side[name].take(rows))
    return table
