"""Scores and selections as Parquet files (the contracts of docs/method.md)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cropi.arguments import require_kind
from cropi.errors import InputError
from cropi.schema import MAX_REWARD, SCORED, UNSCORED, InfluenceEstimate, Selection, unique
from cropi.store.files import read_table, table_metadata, write_table
from cropi.store.remote import local_copy
from cropi.text import remote_url, require_names, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from cropi.store.columns import Columns

JSON = TypeVar("JSON", dict[str, Any], list[Any])
ERROR_SUFFIX = "_standard_error"
"""What is appended to a validation set's name for the column of its standard errors."""
RESPONSES_SUFFIX = "_responses"
"""What is appended to it for the column of the parts that single responses bring."""
POOL_SIZE, NEGATIVE = "cropi.pool_size", "cropi.negative"
"""Keys of the metadata."""
COSINE_TOLERANCE = 1e-4
"""By which rounding may lift a cosine above 1."""
LARGEST_ERROR = 2.0
"""Standard error of a cosine; both ends of its range are this far apart."""
LAYER = "layer_"
"""What the columns of a file of hidden states begin with."""
CURRENT = ("current_reward", "effective_share")
"""Columns that only scores of a model's own pass have."""
RESERVED = ("prompt_id", "norm", "tokens", "group_size", "status", *CURRENT)
"""Columns of a score file that are not validation sets."""


def require_set_names(names: Iterable[str], where: str = "a score file") -> None:
    """Raise InputError if a validation set has the name of another column of a score file."""
    given = list(names)
    for name in given:
        is_list = name.endswith(RESPONSES_SUFFIX) and name.removesuffix(RESPONSES_SUFFIX) in given
        if name in RESERVED or name.endswith(ERROR_SUFFIX) or is_list:
            raise InputError(
                f"a validation set cannot be called {name!r}, which is a column of its own in "
                f"{where}; give it another name"
            )


def write_scores(
    path: str | Path, estimate: InfluenceEstimate, metadata: dict[str, str] | None = None
) -> None:
    """Write one row per prompt of the pool, in its order.

    prompt_id, norm, per validation set one float32 cosine under its name (null: not measured) and
    one float64 <set>_standard_error, tokens, group_size and status; where known, float32
    current_reward and effective_share (null: not measured); where measured, a list <set>_responses
    of responses' parts (null: not usable). Raises InputError if a set is called like a column.
    """
    import pyarrow as pa

    require_kind(estimate, InfluenceEstimate, "estimate", "give influence.estimate")
    require_set_names(estimate.mean, str(path))
    columns: dict[str, Any] = {
        "prompt_id": pa.array(estimate.prompt_ids, pa.string()),
        "norm": _nullable(estimate.norms, pa.float32()),
    }
    for name, mean in estimate.mean.items():
        columns[name] = _nullable(mean, pa.float32())
    for name, error in estimate.standard_error.items():
        columns[name + ERROR_SUFFIX] = _nullable(error, pa.float64())
    for name, parts in estimate.responses.items():
        columns[name + RESPONSES_SUFFIX] = _nullable_lists(parts)
    columns |= {
        "tokens": pa.array(estimate.tokens, pa.int64()),
        "group_size": pa.array(estimate.group_size, pa.int32()),
        "status": pa.array(estimate.status, pa.string()),
    }
    for name, values in zip(
        CURRENT, (estimate.current_reward, estimate.effective_share), strict=True
    ):
        if values is not None:
            columns[name] = _nullable(values, pa.float32())
    about = {
        POOL_SIZE: str(estimate.pool_size),
        "cropi.unlisted": json.dumps(estimate.unlisted),
        "cropi.influence": json.dumps(estimate.identity, sort_keys=True),
    }
    write_table(Path(path), pa.table(columns), {**about, **(metadata or {})})


def read_scores(path: str | Path) -> InfluenceEstimate:
    """Read a score file, which may be a URL; see `scores_from`."""
    with local_copy(path) as file:
        return scores_from(read_table(file), remote_url(path) or file)


def scores_from(table: pa.Table, path: str | Path) -> InfluenceEstimate:
    """The estimate in a score file's table; every other column of floats is a validation set.

    Files that list scored prompts only, without `status`, are read too. Raises InputError, naming
    `path`, if the table is not one of scores.
    """
    from cropi.store.columns import Columns

    columns, names = Columns(table, str(path)), _targets(table)
    if "prompt_id" not in columns or not names:
        raise InputError(
            f"{path} is not a score file: it needs prompt_id and one float column per validation "
            f"set, and has {table.column_names}; make one with `cropi score`"
        )
    columns.require(["prompt_id", *names], "a score file")
    require_names(names, f"{path}: a validation set")
    ids, status = _ids(columns, "scored"), _statuses(columns, table.num_rows)
    scored = np.array([each == SCORED for each in status], dtype=bool)
    if not scored.any():
        raise InputError(
            f"{path} scores no prompt ({len(ids)} rows); score a pool with informative prompts"
        )
    about = table_metadata(table)
    if POOL_SIZE not in about:
        warnings.warn(
            f"{path} does not say how large the pool is (its metadata lacks {POOL_SIZE}); the "
            f"ratio is taken of the {len(ids)} scored prompts",
            stacklevel=3,
        )
    current_reward, effective_share = _under_policy(columns, scored)
    return InfluenceEstimate(
        prompt_ids=ids,
        mean={name: _cosines(columns, name, scored) for name in names},
        standard_error={n: _within(columns, n + ERROR_SUFFIX, 0, LARGEST_ERROR) for n in names},
        norms=_norms(columns, scored),
        tokens=_counts(columns, "tokens").astype(np.int64),
        group_size=_counts(columns, "group_size").astype(np.int32),
        status=status,
        unlisted=_unlisted(about, len(ids), path),
        identity=_json(about, "cropi.influence", path, {}),
        current_reward=current_reward,
        effective_share=effective_share,
        responses={n: _responses(columns, n) for n in names if n + RESPONSES_SUFFIX in columns},
    )


def _targets(table: pa.Table) -> list[str]:
    """The columns that hold a validation set's cosines: floats, and what has a standard error."""
    import pyarrow as pa

    names = [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
    ]
    names += [n.removesuffix(ERROR_SUFFIX) for n in table.column_names if n.endswith(ERROR_SUFFIX)]
    return [n for n in dict.fromkeys(names) if n not in RESERVED and not n.endswith(ERROR_SUFFIX)]


def _ids(columns: Columns, what: str) -> list[str]:
    ids = columns.strings("prompt_id")
    columns.require_no_row("prompt_id", np.array([not i for i in ids]), "is empty; name the prompt")
    if not unique(ids):
        raise InputError(
            f"{columns.path} has a prompt_id on more than one row; each may be {what} once"
        )
    return ids


def _statuses(columns: Columns, rows: int) -> list[str]:
    if "status" not in columns:
        return [SCORED] * rows
    statuses, allowed = columns.strings("status"), (SCORED, *UNSCORED)
    unknown = np.array([each not in allowed for each in statuses], dtype=bool)
    columns.require_no_row("status", unknown, f"is not one of {', '.join(allowed)}", statuses)
    return statuses


def _cosines(columns: Columns, name: str, scored: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = _floats(columns, name)
    columns.require_no_row(
        name, scored & ~np.isfinite(values), "is not a finite number; score again", values
    )
    outside = scored & (np.abs(values) > 1 + COSINE_TOLERANCE)
    columns.require_no_row(name, outside, "is not a cosine, from -1 to 1; score again", values)
    return values.astype(np.float32)


def _norms(columns: Columns, scored: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = _floats(columns, "norm", 1.0)
    with np.errstate(over="ignore"):
        norms = values.astype(np.float32)
    wrong = scored & ~((norms > 0) & np.isfinite(norms))
    columns.require_no_row("norm", wrong, "is not the length of a gradient; score again", values)
    return norms


def _within(columns: Columns, name: str, least: float, most: float) -> NDArray[np.float64]:
    """A column of numbers in a range; NaN where it is null, or not there at all."""
    values = _floats(columns, name)
    problem = f"is not a number from {least:.3g} to {most:.3g}; score again"
    columns.require_no_row(name, (values < least) | (values > most), problem, values)
    return values


def _under_policy(columns: Columns, scored: NDArray[np.bool_]) -> list[NDArray[np.float32] | None]:
    """Rewards under the policy, and the shares of responses that they rest on, where known."""
    rewards = _within(columns, "current_reward", -MAX_REWARD, MAX_REWARD)
    shares = _within(columns, "effective_share", 0, 1 + COSINE_TOLERANCE)
    missing = scored & np.isfinite(rewards) & np.isnan(shares) & ("effective_share" in columns)
    columns.require_no_row("effective_share", missing, "is missing beside a reward; score again")
    both = zip(CURRENT, (rewards, shares), strict=True)
    return [values.astype(np.float32) if name in columns else None for name, values in both]


def _responses(columns: Columns, name: str) -> list[NDArray[np.float32]]:
    """The parts of a set's cosines that responses bring; NaN for null."""
    import pyarrow as pa

    column = name + RESPONSES_SUFFIX
    parts, _ = columns.optional_ragged(column, pa.float32(), null_is_nan=True)
    wrong = parts.any_of(np.isinf(parts.values))
    columns.require_no_row(column, wrong, "holds an infinite number; score again")
    return [parts[row] for row in range(len(parts.lengths))]


def _floats(columns: Columns, name: str, default: float = math.nan) -> NDArray[np.float64]:
    """A column with NaN for null, or `default` everywhere where there is no such column."""
    import pyarrow as pa

    return columns.numbers(name, pa.float64(), missing=default, nulls=math.nan)


def _counts(columns: Columns, name: str) -> NDArray[np.int64]:
    """A column of counts; 0 where it is null, or not there at all."""
    import pyarrow as pa

    values = columns.numbers(name, pa.int64(), missing=0, nulls=0)
    wrong = (values < 0) | (values > np.iinfo(np.int32).max)
    columns.require_no_row(name, wrong, "is not a count", values)
    return values


def _unlisted(about: Mapping[str, str], rows: int, path: str | Path) -> dict[str, int]:
    """Prompts of the pool without a row, by reason; older files call them skipped."""
    key = "cropi.unlisted" if "cropi.unlisted" in about else "cropi.skipped"
    by_reason: dict[str, Any] = _json(about, key, path, {})
    listed = rows + sum(count_in(path, key, count) for count in by_reason.values())
    rest = count_in(path, POOL_SIZE, about.get(POOL_SIZE, str(listed))) - listed
    if rest < 0:
        raise InputError(
            f"{path}: its metadata {POOL_SIZE} says {about[POOL_SIZE]} prompts, and {listed:,} are "
            "listed; score again"
        )
    return by_reason | {"not listed": rest} if rest > 0 else by_reason


def count_in(path: str | Path, key: str, value: Any) -> int:
    """A count in a file's metadata. Raises InputError if it is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**15:
        raise InputError(
            f"{path}: its metadata {key} holds {shown(value, 60)} where a count should "
            "be; make the file again"
        )
    return value


def _json(about: Mapping[str, str], key: str, path: str | Path, default: JSON) -> JSON:
    """JSON in a file's metadata, of the default's type. Raises InputError for any other text."""
    text = about.get(key)
    if text is None:
        return default
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, type(default)):
        kind = "object" if isinstance(default, dict) else "list"
        raise InputError(
            f"{path}: its metadata {key} holds {shown(text, 60)} where a JSON {kind} should be; "
            "make the file again"
        )
    return value


def _nullable(values: NDArray[np.floating], kind: pa.DataType) -> pa.Array:
    """A column with null for NaN."""
    import pyarrow as pa

    return pa.array(values, kind, mask=np.isnan(values))


def _nullable_lists(rows: Iterable[NDArray[np.floating]]) -> pa.Array:
    """A column of lists, of which empty ones are null, with null for NaN in them."""
    import pyarrow as pa

    lists = [_nullable(values, pa.float32()).to_pylist() or None for values in rows]
    return pa.array(lists, pa.list_(pa.float32()))


def write_selection(
    path: str | Path, selection: Selection, metadata: dict[str, str] | None = None
) -> None:
    """Write prompt_id, rank (from 1), score and each set's rank as rank_<set>."""
    import pyarrow as pa

    require_kind(selection, Selection, "selection", "give what cropi.select returns")
    columns: dict[str, Any] = {
        "prompt_id": pa.array(selection.prompt_ids, pa.string()),
        "rank": pa.array(np.arange(1, len(selection.prompt_ids) + 1), pa.int32()),
        "score": pa.array(selection.scores, pa.float64()),
    }
    columns |= {f"rank_{n}": pa.array(r, pa.int32()) for n, r in selection.ranks.items()}
    about = {"cropi.notes": json.dumps(selection.notes), NEGATIVE: str(selection.negative)}
    write_table(Path(path), pa.table(columns), {**about, **(metadata or {})})


def write_hidden_states(
    path: Path,
    prompt_ids: Sequence[str],
    states_LPF: NDArray[np.float32],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one row per prompt: prompt_id, and its states [F] float32 in each of the layers."""
    import pyarrow as pa

    columns: dict[str, Any] = {"prompt_id": pa.array(prompt_ids, pa.string())}
    for layer, states_PF in enumerate(states_LPF):
        flat = pa.array(states_PF.ravel())
        columns[f"{LAYER}{layer}"] = pa.FixedSizeListArray.from_arrays(flat, states_PF.shape[1])
    write_table(path, pa.table(columns), metadata)


def read_hidden_states(path: Path) -> NDArray[np.float32]:
    """Read hidden states [layers, prompts, width]. Raises InputError if the file is damaged."""
    table = read_table(path)
    layers = [name for name in table.column_names if name.startswith(LAYER)]
    flat = [table[name].combine_chunks().flatten().to_numpy() for name in layers]
    return np.stack(flat).reshape(len(layers), table.num_rows, -1)


def read_selection(path: str | Path) -> Selection:
    """Read a selection's file or URL. Raises InputError if it is none, or selects nothing."""
    with local_copy(path) as file:
        return _selection_from(read_table(file), remote_url(path) or file)


def holds_scores(table: pa.Table) -> bool:
    """Whether a table is one of scores, of which nothing has been selected."""
    names = table.column_names
    return "rank" not in names and ("norm" in names or POOL_SIZE in table_metadata(table))


def _selection_from(table: pa.Table, path: str | Path) -> Selection:
    import pyarrow as pa

    from cropi.store.columns import Columns

    if holds_scores(table):
        raise InputError(f"{path} holds scores, not a selection; make one of them: `cropi select`")
    columns = Columns(table, str(path))
    if "prompt_id" not in columns or table.num_rows == 0:
        raise InputError(
            f"{path} selects nothing: it needs a prompt_id column with at least one row, and has "
            f"{table.num_rows} rows of {table.column_names}; make one with `cropi select`"
        )
    ids, order = _ids(columns, "selected"), np.arange(table.num_rows)
    if "rank" in columns:
        rank = columns.numbers("rank", pa.int64())
        order = np.argsort(rank, kind="stable")
        if len(np.unique(rank)) < len(rank):
            raise InputError(f"{path} has a rank on more than one row; rank the prompts from 1 on")
    ranks = {
        name.removeprefix("rank_"): _counts(columns, name)[order].astype(np.int32)
        for name in table.column_names
        if name.startswith("rank_")
    }
    about, scores = table_metadata(table), _floats(columns, "score", 0.0)
    columns.require_no_row("score", ~np.isfinite(scores), "is not finite; select again", scores)
    return Selection(
        [ids[place] for place in order],
        scores[order],
        ranks,
        count_in(path, NEGATIVE, about.get(NEGATIVE, "0")),
        [str(note) for note in _json(about, "cropi.notes", path, list[Any]())],
    )
