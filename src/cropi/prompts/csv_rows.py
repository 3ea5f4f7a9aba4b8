"""Rows of CSV and TSV files: every cell is text as it stands, and an empty one is missing.

No cell is turned into a number or a date, because `007`, `1.50` and `1e3` would come out as other
answers. Columns that hold lists or objects are JSON in a CSV file, and become what they are.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from cropi.errors import InputError
from cropi.prompts.json_values import NESTED_COLUMNS, parsed_json
from cropi.text import shown

LONGEST_CELL = 16_000_000
"""Characters; longer than the longest prompt, which is refused by name."""


def read_csv(
    lines: TextIO, where: str, separator: str | None, required: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows with their numbers, as a spreadsheet counts them: the header is row 1.

    `separator` None means a comma, or a semicolon or tab where the header has those and no commas,
    as spreadsheets write it in many countries.

    Raises InputError for a header with a name twice or without a required one, a row of another
    length, or broken quotes.
    """
    csv.field_size_limit(LONGEST_CELL)
    header_line = lines.readline()
    reader = csv.reader(
        _lines(header_line, lines), delimiter=separator or _separator(header_line), strict=True
    )
    try:
        header = [name.strip() for name in next(reader, [])]
        _require_header(header, where, required)
        for number, cells in enumerate(reader, 2):
            if any(cells):
                yield number, _row(header, cells, f"{where} row {number}")
    except csv.Error as error:
        raise InputError(
            f"{where} line {reader.line_num} is not valid CSV ({error}); quote cells that hold "
            "separators, quotes or line ends"
        ) from None


def _lines(first: str, rest: TextIO) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _separator(header: str) -> str:
    others = [mark for mark in ";\t" if mark in header and "," not in header]
    return others[0] if others else ","


def _require_header(header: list[str], where: str, required: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{where} has the column {shown(twice[0], 60)} twice; rename one")
    if missing := [name for name in required if name not in header]:
        raise InputError(
            f"{where} has no column {missing[0]!r} (it has {shown(header, 200)}); add it"
        )


def _row(header: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise InputError(
            f"{where} has {len(cells)} cells and the header {len(header)}; quote cells that hold "
            "separators or line ends"
        )
    named = zip(header, cells, strict=True)
    return {name: _value(name, cell, where) for name, cell in named if cell}


def _value(name: str, cell: str, where: str) -> Any:
    """The cell's text; JSON lists of objects, and objects, in columns that hold such."""
    if name not in NESTED_COLUMNS or not cell.lstrip().startswith(("[{", "{")):
        return cell
    value = parsed_json(cell)
    if value is not cell:
        return value
    raise InputError(
        f"{where}: column {name} holds {shown(cell, 80)}, which is not JSON; write its lists and "
        "objects as JSON, or give a .jsonl or .parquet file"
    )
