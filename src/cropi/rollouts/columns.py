"""Typed access to the columns of a rollout file, with errors that name file, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.errors import InputError


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of lists: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def any_of(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows hold a flagged value; `flags` is aligned with `values`."""
        counts = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
        return np.asarray(counts[self.offsets[1:]] > counts[self.offsets[:-1]])


class Columns:
    """The columns of one file, decoded once each.

    A column that is not there gives `missing` in every row, a null gives `nulls`; either is an
    InputError where no such value is given.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.path = path
        self._table = table
        self._decoded: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._table.column_names

    def require(self, names: Sequence[str]) -> None:
        """Raise InputError unless the table has rows and all of these columns."""
        missing = [name for name in names if name not in self]
        if missing:
            found = ", ".join(self._table.column_names) or "none"
            raise InputError(
                f"{self.path} lacks the column {', '.join(missing)} (it has {found}); a rollout "
                f"file needs {', '.join(names)}"
            )
        if self._table.num_rows == 0:
            raise InputError(f"{self.path} has no rows; give a file with at least one rollout")

    def strings(self, name: str, missing: str | None = None, nulls: str | None = None) -> list[str]:
        """Return a text column; integers are taken as their digits."""
        if name not in self._decoded:
            array = self._column(name, pa.string(), missing, nulls)
            self._decoded[name] = array.to_pylist()
        decoded: list[str] = self._decoded[name]
        return decoded

    def flags(self, name: str, missing: bool | None = None) -> list[bool]:
        """Return a column of booleans."""
        if name not in self._decoded:
            self._decoded[name] = self._column(name, pa.bool_(), missing, None).to_pylist()
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

    def ragged(self, name: str, kind: pa.DataType) -> Ragged:
        """Return a column of lists; the values are a writable copy."""
        return self._ragged(name, self._column(name, pa.large_list(kind), None, None))

    def optional_ragged(self, name: str, kind: pa.DataType) -> tuple[Ragged, NDArray[np.bool_]]:
        """Return a column of lists and which rows [rows] have one; null rows are empty lists."""
        empty: list[Any] = []
        array = self._column(name, pa.large_list(kind), empty, empty)
        if name not in self:
            return self._ragged(name, array), np.zeros(self._table.num_rows, dtype=bool)
        present = self._table[name].is_valid().to_numpy()
        return self._ragged(name, array), np.asarray(present, dtype=bool)

    def _ragged(self, name: str, array: pa.Array) -> Ragged:
        offsets = array.offsets.to_numpy()
        # Slices of a file keep the whole file's values; only this array's are wanted.
        values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        ragged = Ragged(np.array(values.to_numpy(zero_copy_only=False)), offsets - offsets[0])
        if values.null_count:
            holes = np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
            self.require_no_row(name, ragged.any_of(holes), "holds a null; give a value a token")
        return ragged

    def require_no_row(
        self, name: str, wrong: NDArray[np.bool_], problem: str, shown: Sequence[Any] | Any = None
    ) -> None:
        """Raise InputError naming the first row flagged in `wrong` [rows], if any is."""
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
        column = self._table[name]
        try:
            array = pa.concat_arrays(column.cast(kind).chunks)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.path}, column {name}: {column.type} cannot be read as {kind} ({reason}); "
                "rewrite the column with that type"
            ) from error
        if array.null_count and nulls is None:
            holes = np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=bool)
            self.require_no_row(name, holes, "is null; give a value")
        return array.fill_null(nulls) if array.null_count else array
