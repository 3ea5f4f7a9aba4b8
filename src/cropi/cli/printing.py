"""What commands print on: the console, a reporter, tables without lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cropi.text import printable

if TYPE_CHECKING:
    from rich.console import Console

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
        def say(self, text: str, style: str = "") -> None:
            super().say(with_output_urls(text), style)

    return Reporter(make_console())


def say_unjudged(
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
    """A table without lines, its first column to the left."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="left" if n == 0 else "right")
    for row in rows:
        # As it is: names may contain what rich reads as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    make_console().print(table)


def print_outcome(done: str, skipped: Mapping[str, int], notes: Sequence[str]) -> None:
    """What was done with how many prompts, what was skipped and why, and warnings."""
    reporter = make_reporter()
    reporter.say(f"  {done}")
    for reason, count in skipped.items():
        reporter.say(f"  {count:,} skipped: {reason}")
    for note in notes:
        reporter.warn(note)
