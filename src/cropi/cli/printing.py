"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cropi.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from cropi.influence.cosines import Influence
    from cropi.progress import ProgressReporter


def make_console() -> Console:
    """Today's stdout, kept while libraries are silenced by redirecting it; wide where it is a log.

    A file or a pipe has no width, and the 80 columns that rich assumes would fold our tables.
    """
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=160)


def make_narrator() -> ProgressReporter:
    """A reporter for this terminal."""
    from cropi.progress import ProgressReporter

    return ProgressReporter(make_console())


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table without lines, its first column to the left."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(header):
        table.add_column(name, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(
            *(Text(printable(cell)) for cell in row)
        )  # as it is: names may hold what rich would read as markup
    make_console().print(table)


def print_scores(influence: Influence, out: Path) -> None:
    """What was scored against what, what was skipped and why, and what deserves doubt."""
    scored = influence.estimate.scored()
    rows = [
        [
            name,
            f"{trust.informative:,}",
            f"{trust.effective:.1f}",
            f"{trust.split_half:.2f}",
            f"{float(scored.mean[name].max()):.3f}",
            f"{float(scored.mean[name].mean()):.3f}",
        ]
        for name, trust in influence.reliability.items()
    ]
    print_table(
        ["target", "informative", "effective", "split-half", "max cosine", "mean cosine"], rows
    )
    reporter = make_narrator()
    reporter.say(f"  {len(scored.prompt_ids):,} of {scored.pool_size:,} prompts scored -> {out}")
    for reason, count in scored.skipped.items():
        reporter.say(f"  {count:,} skipped: {reason}")
    for note in influence.notes:
        reporter.warn(note)


def print_summary(console: Console, directory: Path) -> None:
    """The run's headline, a short table and the path of the report."""
    from cropi.progress import ProgressReporter
    from cropi.report import run_headline, run_table

    console.print()
    reporter = ProgressReporter(console)
    reporter.say(run_headline(directory), style="bold")
    print_table(*run_table(directory))
    reporter.say(f"report: {directory / 'report.html'}")


def not_judged(statuses: Mapping[str, int]) -> str:
    """How many responses have no verdict, by status."""
    return ", ".join(f"{n} {s}" for s, n in statuses.items() if s != "ok" and n) or "0"
