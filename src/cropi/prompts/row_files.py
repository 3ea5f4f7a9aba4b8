"""Rows of JSONL, JSON and Parquet files, numbered, or one sentence about the first bad one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropi.errors import InputError
from cropi.store import files
from cropi.text import shortened, shown

if TYPE_CHECKING:
    import pyarrow as pa

NumberedRow = tuple[int, Mapping[str, Any]]
"""A row with its number from 1, as somebody who reads the file would count it."""
NumberedRows = list[NumberedRow]
BATCH_ROWS = 1_000


def read_file(path: Path) -> NumberedRows:
    """Read the rows of a .jsonl, .json or .parquet file.

    Raises InputError if the file is empty, of another kind, or damaged.
    """
    return list(open_rows(path))


def open_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a file one by one; raises as `read_file` does."""
    readers = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} ends in {path.suffix!r}; prompts come from {', '.join(readers)}: convert it"
        )
    files.require_file(path)
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot read {path}: {reason}; give a file that you may read") from error


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    # Iterating the file splits at newlines only; str.splitlines would also cut inside strings.
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _object(_json(line, f"{path} row {number}"), f"{path} row {number}")


def _read_json(path: Path) -> Iterator[NumberedRow]:
    rows = _json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(rows, list):
        raise InputError(
            f"{path} holds JSON of type {type(rows).__name__}; give a list of objects, or "
            "one object per line in a .jsonl file"
        )
    for number, row in enumerate(rows, 1):
        yield number, _object(row, f"{path} row {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_single_keys)
    except RecursionError:
        raise InputError(f"{where} is nested too deep; flatten it") from None
    except ValueError as error:  # JSON that is none, a key twice, an integer of thousands of digits
        raise InputError(
            f"{where} is not valid JSON ({shortened(str(error), 200)}); fix it"
        ) from None


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice, 60)} is there twice")
    return values


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise InputError(
        f"{where} is of type {type(value).__name__}; give an object with a question and an answer"
    )


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _require_single_columns(file.schema_arrow.names, path)
            yield from rows_of(file.iter_batches(batch_size=BATCH_ROWS), path)
    except (pa.ArrowException, OSError) as error:
        reason = shortened(str(error).splitlines()[0] if str(error) else "damaged", 200)
        raise InputError(f"{path} is not a readable Parquet file: {reason}") from error


def rows_of(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a file's batches. Raises InputError naming a cell that cannot be read."""
    first = 1
    for batch in batches:
        yield from enumerate(_batch_rows(batch, path, first), first)
        first += batch.num_rows


def _require_single_columns(names: list[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has the column {shown(twice[0], 60)} twice; rename one")


def _batch_rows(batch: pa.RecordBatch, path: Path, first: int) -> list[dict[str, Any]]:
    """The rows of a batch whose first has the number `first`; maps become dicts."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
        return rows
    except Exception as error:  # noqa: BLE001  dates past 9999, text that is not UTF-8, unknown time zones, ...
        place = _unreadable_cell(batch, first)
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise InputError(
            f"{path} {place} holds a value that cannot be read ({reason}); fix or remove it"
        ) from None


def _unreadable_cell(batch: pa.RecordBatch, first: int) -> str:
    """Say which cell of a batch is the first that Python cannot hold."""
    for row in range(batch.num_rows):
        for name in batch.schema.names:
            try:
                batch.column(name).slice(row, 1).to_pylist(maps_as_pydicts="strict")
            except Exception:  # noqa: BLE001  whatever it is, this is the cell
                return f"row {first + row}, column {shown(name, 60)},"
    return f"rows {first} to {first + batch.num_rows - 1}"
