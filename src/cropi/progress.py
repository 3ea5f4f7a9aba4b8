"""What a run prints while it works: a bar per phase on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cropi.text import printable, shortened

Advance = Callable[[int], None]
"""Called with how many more are done."""
ProgressCallback = Callable[[int, int], None]
"""Called with how many are done, and of how many."""
PhaseProgress = Callable[[str, int, int], None]
"""Called with the name of a phase, how many are done in it, and of how many."""
LOG_SECONDS = 60.0
"""How often a long phase prints a line where there is no terminal."""


class Bar:
    """The progress of one phase; `note` is shown beside it."""

    def __init__(self, progress: Progress | None = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task
        self.note = ""

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Show that `done` of `total` is done."""
        if note is not None:
            self.note = printable(note)
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, note=self.note)


class ProgressReporter:
    """Prints what happens; silent without a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.last_print = 0.0

    def info(self, text: str, style: str = "") -> None:
        """Print one line; the text is shown as it is, markup in it is not interpreted."""
        self.last_print = time.monotonic()
        if self.console is not None:
            # Not wrapped: a terminal wraps by itself, and a log should have one line per message.
            self.console.print(
                printable(text),
                style=style,
                markup=False,
                emoji=False,
                highlight=False,
                soft_wrap=True,
            )

    def warn(self, text: str) -> None:
        """Print a line that deserves attention."""
        self.info(f"  ! {shortened(text)}", style="yellow")

    @contextmanager
    def phase(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Show a phase while it runs, and one line with its time and last note when it is done."""
        start = time.perf_counter()
        if self.console is None:
            yield Bar()
            return
        if self.console.is_terminal:
            with Progress(*_columns(), console=self.console, transient=True) as progress:
                bar = Bar(progress, progress.add_task(printable(title), total=total, note=""))
                yield bar
        else:
            bar = LogBar(self, title, total)
            yield bar
        self.info(f"  {title:<26} {time.perf_counter() - start:6.1f} s   {bar.note}".rstrip())


def log_reporter() -> ProgressReporter:
    """A reporter that writes lines to the standard error, beside another program's bar."""
    return ProgressReporter(Console(stderr=True, force_terminal=False))


def _columns() -> tuple[ProgressColumn, ...]:
    """The columns of a live bar: title, bar, count, time, note."""
    return (
        TextColumn("  {task.description:<26}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )


class LogBar(Bar):
    """Progress in a log: a line after each minute in which nothing was printed."""

    def __init__(self, reporter: ProgressReporter, title: str, total: int | None) -> None:
        super().__init__()
        self._reporter = reporter
        self._title = title
        self._total = total
        self._start = time.monotonic()

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Print that `done` of `total` is done, if nothing was printed for a minute."""
        super().update(done, total, note)
        self._total = total or self._total
        now = time.monotonic()
        if now - max(self._start, self._reporter.last_print) < LOG_SECONDS:
            return
        count = f"{done:,}/{self._total:,}" if self._total else f"{done:,}"
        seconds = f"{now - self._start:6.0f} s"
        self._reporter.info(f"  {self._title:<26} {seconds}   {count}  {self.note}".rstrip())
