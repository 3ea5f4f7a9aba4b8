"""What commands print on: the console, a reporter, tables without lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from cropi.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cropi.progress import ProgressReporter
    from cropi.verifiers import Judge


def make_console() -> Console:
    """A console on the stdout of this moment, so that libraries can be silenced by redirecting it.

    It is wide in a log: a file or a pipe has no width, and the 80 columns that rich assumes would
    fold our tables.
    """
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=160)


def make_reporter() -> ProgressReporter:
    """A reporter for this terminal, which calls outputs by their URLs."""
    from cropi.progress import ProgressReporter
    from cropi.store.remote import with_output_urls

    class Reporter(ProgressReporter):
        def info(self, text: str, style: str = "") -> None:
            super().info(with_output_urls(text), style)

    return Reporter(make_console())


def report_unjudged(
    reporter: ProgressReporter, judge: Judge, statuses: Mapping[str, int] | None = None
) -> None:
    """Say how many responses a judge has not judged, and why.

    `statuses` are those of all responses, where an earlier call has judged some of them.
    """
    note = judge.unjudged()
    unjudged = sum(n for status, n in (statuses or {}).items() if status != "ok")
    if not note and unjudged:
        listed = ", ".join(f"{n:,} {s}" for s, n in (statuses or {}).items() if s != "ok" and n)
        total = sum((statuses or {}).values())
        note = f"{unjudged:,} of {total:,} responses were not judged: {listed}"
    if note:
        reporter.warn(note)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table without lines, its first column to the left.

    On a narrow terminal headings take several lines; columns that do not fit follow below, beside
    the first one again. No cell is cut.
    """
    from rich.table import Table
    from rich.text import Text

    # As it is: names may contain what rich reads as markup.
    cells = [[Text(printable(cell)) for cell in row] for row in [header, *rows]]
    columns = list(zip(*cells, strict=True))
    console = make_console()
    for band in _bands([_least_width(column) for column in columns], console.width):
        table = Table(box=None, pad_edge=False, header_style="bold")
        widths = _widths([columns[n] for n in band], console.width)
        for n, width in zip(band, widths, strict=True):
            justify: Literal["left", "right"] = "right" if n else "left"
            table.add_column(columns[n][0], justify=justify, width=width, overflow="fold")
        for row in cells[1:]:
            table.add_row(*(row[n] for n in band))
        console.print(table)


FOLDED = 24
"""Characters of a cell above which it may be folded: it is text, and no number."""
GAP = 2
"""Characters between two columns."""


def _least_width(column: Sequence[Text]) -> int:
    """The characters that a column needs: for the longest word of its heading, and its numbers."""
    from rich.text import Text

    heading, *cells = column
    words = (Text(word).cell_len for word in heading.plain.split())
    return max([*words, *(min(cell.cell_len, FOLDED) for cell in cells)], default=0)


def _bands(least: Sequence[int], space: int) -> list[list[int]]:
    """Columns that fit beside each other, by number; each band begins with the first column."""
    bands = [[0]]
    for n in range(1, len(least)):
        band = [*bands[-1], n]
        fits = sum(least[each] for each in band) + GAP * (len(band) - 1) <= space
        if fits or len(band) == 2:
            bands[-1] = band
        else:
            bands.append([0, n])
    return bands


def _widths(columns: Sequence[Sequence[Text]], space: int) -> list[int]:
    """The width of each column: the least, and from the left what it lacks of the spare room."""
    widths = [_least_width(column) for column in columns]
    spare = space - sum(widths) - GAP * (len(widths) - 1)
    for n, column in enumerate(columns):
        wanted = max(cell.cell_len for cell in column) - widths[n]
        more = max(0, min(spare, wanted))
        widths[n] += more
        spare -= more
    return widths


def print_outcome(done: str, skipped: Mapping[str, int], notes: Sequence[str]) -> None:
    """What was done with how many prompts, what was skipped and why, and warnings."""
    reporter = make_reporter()
    reporter.info(f"  {done}")
    for reason, count in skipped.items():
        reporter.info(f"  {count:,} skipped: {reason}")
    for note in notes:
        reporter.warn(note)
