"""What a run says while it works: one bar a phase on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """The progress of one phase; `note` is shown beside it."""

    def __init__(self, progress: Progress | None = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task
        self.note = ""

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Show that `done` of `total` is done."""
        if note is not None:
            self.note = note
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, note=self.note)


class Narrator:
    """Tells a person what happens; without a console it is silent."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, text: str, style: str = "") -> None:
        """Print one line; the text is shown as it is, markup in it is not interpreted."""
        if self.console is not None:
            # Not wrapped: a terminal wraps by itself, and a log wants one line a sentence.
            self.console.print(
                text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True
            )

    def warn(self, text: str) -> None:
        """Print a line that deserves attention."""
        self.say(f"  ! {text}", style="yellow")

    @contextmanager
    def phase(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Show a phase while it runs, and one line with its time and last note when it is done."""
        start = time.perf_counter()
        if self.console is None:
            yield Bar()
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description:<26}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                bar = Bar(progress, progress.add_task(title, total=total, note=""))
                yield bar
        else:
            bar = Bar()
            yield bar
        self.say(f"  {title:<26} {time.perf_counter() - start:6.1f} s   {bar.note}".rstrip())
