"""Columns of a Parquet file, each decoded once and by what its type can mean.

Errors name file, row (from 0) and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.text import shortened, shown


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of lists; row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def any_of(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which rows contain a flagged value; `flags` is aligned with `values`."""
        counts = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
        return np.asarray(counts[self.offsets[1:]] > counts[self.offsets[:-1]])


class Columns:
    """The columns of one file, decoded once each.

    A missing column reads as `missing` in every row and a null as `nulls`; each is an InputError
    if no such value is given.
    """

    def __init__(self, table: pa.Table, path: str) -> None:
        self.path = path
        self._table = table
        self._decoded: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._table.column_names

    def require(self, names: Sequence[str], what: str = "a rollout file") -> None:
        """Raise InputError unless the table has rows and all of these columns."""
        missing = [name for name in names if name not in self]
        if missing:
            present = shortened(", ".join(self._table.column_names), 300) or "none"
            raise InputError(
                f"{self.path} lacks the column {', '.join(missing)} (it has {present}); {what} "
                f"needs {', '.join(names)}"
            )
        if self._table.num_rows == 0:
            raise InputError(f"{self.path} has no rows; give {what} with at least one")

    def strings(self, name: str, missing: str | None = None, nulls: str | None = None) -> list[str]:
        """Return a text column; integers are converted to their digits."""
        if name not in self._decoded:
            array = self._column(name, pa.string(), missing, nulls)
            self._decoded[name] = array.to_pylist()
        decoded: list[str] = self._decoded[name]
        return decoded

    def flags(self, name: str, missing: bool | None = None) -> list[bool]:
        """Return a column of booleans, which may be written as 0 and 1."""
        if name not in self._decoded:
            array = self._column(name, pa.bool_(), missing, None)
            if name in self and pa.types.is_integer(self._table[name].type):
                values = self._table[name].to_numpy()
                wrong = (values != 0) & (values != 1)
                self.require_no_row(name, wrong, "is not 0 or 1", values)
            self._decoded[name] = array.to_pylist()
        decoded: list[bool] = self._decoded[name]
        return decoded

    def numbers(
        self, name: str, kind: pa.DataType, missing: float | None = None, nulls: float | None = None
    ) -> NDArray[Any]:
        """Return a column of numbers as an array [rows] of that type."""
        if name not in self._decoded:
            array = self._column(name, kind, missing, nulls)
            self._decoded[name] = array.to_numpy(zero_copy_only=False)
        decoded: NDArray[Any] = self._decoded[name]
        return decoded

    def ragged(self, name: str, kind: pa.DataType, null_is_nan: bool = False) -> Ragged:
        """Return a column of lists; the values are a writable copy.

        A null in a list of floats reads as NaN if that is allowed.
        """
        array = self._column(name, pa.large_list(kind), None, None)
        return self._ragged(name, array, null_is_nan)

    def optional_ragged(
        self, name: str, kind: pa.DataType, null_is_nan: bool = False
    ) -> tuple[Ragged, NDArray[np.bool_]]:
        """Return a column of lists and which rows [rows] have one; null rows are empty lists."""
        empty: list[Any] = []
        array = self._column(name, pa.large_list(kind), empty, empty)
        if name not in self:
            return self._ragged(name, array), np.zeros(self._table.num_rows, dtype=bool)
        present = self._table[name].is_valid().to_numpy()
        return self._ragged(name, array, null_is_nan), np.asarray(present, dtype=bool)

    def _ragged(self, name: str, array: pa.Array, null_is_nan: bool = False) -> Ragged:
        offsets = array.offsets.to_numpy()
        # A slice of a table keeps the values of the whole table; only this array's are wanted.
        values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        ragged = Ragged(np.array(values.to_numpy(zero_copy_only=False)), offsets - offsets[0])
        if values.null_count and not null_is_nan:
            is_null = np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
            self.require_no_row(
                name, ragged.any_of(is_null), "holds a null; give one value per token"
            )
        return ragged

    def require_no_row(
        self, name: str, wrong: NDArray[np.bool_], problem: str, shown: Sequence[Any] | Any = None
    ) -> None:
        """Raise InputError naming the first row flagged in `wrong` [rows], if there is one."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            row = int(rows[0])
            value = f"{shown[row]!s} " if shown is not None else ""
            raise self.error(row, name, f"{value}{problem}")

    def error(self, row: int, name: str, problem: str) -> InputError:
        """Return the error for one cell; rows count from 0."""
        return InputError(f"{self.path} row {row}, column {name}: {problem}")

    def _column(self, name: str, kind: pa.DataType, missing: Any, nulls: Any) -> pa.Array:
        """Return one column cast to `kind`, without nulls."""
        if name not in self:
            assert missing is not None, f"column {name} was not required"
            return pa.repeat(pa.scalar(missing, kind), self._table.num_rows)
        column = plain_column(self._table[name])
        if not _can_hold(column.type, kind, name in BOOLEANS):
            raise InputError(
                f"{self.path}, column {name}: {shortened(str(column.type), 80)} cannot be read as "
                f"{_wanted(kind)}; rewrite the column"
            )
        try:
            array = pa.concat_arrays(column.cast(kind).chunks)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise self._uncastable(column, name, kind) from None
        if array.null_count and nulls is None:
            is_null = np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=bool)
            self.require_no_row(name, is_null, "is null; give a value")
        return array.fill_null(nulls) if array.null_count else array

    def _uncastable(self, column: pa.ChunkedArray, name: str, kind: pa.DataType) -> InputError:
        """Return the error for the first cell that cannot be read, found by halving."""
        start, stop = 0, len(column)
        while stop - start > 1:
            middle = (start + stop) // 2
            try:
                column.slice(start, middle - start).cast(kind)
                start = middle
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                stop = middle
        value = shown(column[start].as_py(), 60)
        return self.error(start, name, f"{value} cannot be read as {_wanted(kind)}; correct it")


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionary encoding, which nothing but size depends on."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


BOOLEANS = ("reward", "loss_mask")
"""Columns of numbers in which true and false are 1 and 0."""


def _can_hold(given: pa.DataType, kind: pa.DataType, booleans: bool) -> bool:
    """Whether values of a type can mean what is read as `kind`; dates, say, are not numbers."""
    if pa.types.is_null(given):
        return True
    if pa.types.is_large_list(kind):
        return _is_list(given) and _can_hold(given.value_type, kind.value_type, booleans)
    if pa.types.is_string(kind):
        return _is_text(given) or pa.types.is_integer(given)
    if pa.types.is_boolean(kind):
        return pa.types.is_boolean(given) or pa.types.is_integer(given) or _is_text(given)
    number = pa.types.is_integer(given) or pa.types.is_floating(given) or _is_text(given)
    decimal = pa.types.is_decimal(given)
    return number or decimal or (booleans and pa.types.is_boolean(given))


def _is_list(given: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(given) for is_kind in kinds)


def _is_text(given: pa.DataType) -> bool:
    binary = pa.types.is_binary(given) or pa.types.is_large_binary(given)
    text = pa.types.is_string(given) or pa.types.is_large_string(given)
    return bool(text or binary or pa.types.is_string_view(given))


def _wanted(kind: pa.DataType) -> str:
    """What a column of this type holds, in words."""
    if pa.types.is_large_list(kind):
        return f"lists of {_wanted(kind.value_type)}"
    if pa.types.is_integer(kind):
        return f"whole numbers of {kind.bit_width} bits"
    if pa.types.is_floating(kind):
        return "numbers"
    return "text" if pa.types.is_string(kind) else "true or false"
