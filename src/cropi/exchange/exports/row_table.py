"""Rows of any shape as an Arrow table that Parquet can hold.

Rows of a data set need not agree: a column may hold numbers in one row and text in another, or
objects without a key. Such a column becomes JSON text as a whole, and is named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def row_table(rows: Sequence[dict[str, Any]]) -> tuple[pa.Table, list[str]]:
    """Return the rows as a table, and the columns that had to become JSON text."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    as_text: list[str] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        array = _typed(values)
        if array is None:
            as_text.append(name)
            texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
            array = pa.array(texts, pa.string())
        columns[name] = array
    return pa.table(columns), as_text


def _typed(values: list[Any]) -> pa.Array | None:
    """The values as an Arrow array that gives them back; None if there is no such type."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError):
        return None
    if pa.types.is_null(array.type):
        return pa.array(values, pa.string())
    same = _holds_every_type(array.type) and all(map(_same, values, array.to_pylist()))
    return array if same else None


def _holds_every_type(kind: pa.DataType) -> bool:
    """Whether Parquet can write the type: it has no objects without keys."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_holds_every_type(each.type) for each in kind)
    if pa.types.is_list(kind):
        return _holds_every_type(kind.value_type)
    return not pa.types.is_null(kind)


def _same(before: Any, after: Any) -> bool:
    """Whether a value came back: an object may have gained keys without a value."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(
            _same(before.get(key), value) for key, value in after.items()
        )
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return type(before) is type(after) and (before == after or before != before)
