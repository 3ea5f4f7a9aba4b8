"""The report of a run: one HTML page that works offline, and the same numbers as a table.

`numbers` computes, `wording` says it; the page and the command line share both.
"""

from __future__ import annotations

from pathlib import Path

from cropi.report.numbers import baseline_of
from cropi.report.reading import read_run
from cropi.report.summary import ArmSummary, summarise
from cropi.report.wording import COLUMNS, cells, headline
from cropi.store.files import atomic_write

__all__ = ["COLUMNS", "ArmSummary", "cells", "headline_of", "report", "summary_table"]


def report(run: Path) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    Raises InputError if `run` is no run directory or cannot be written to.
    """
    from cropi.report.page import render

    page = render(read_run(run))
    target = run / "report.html"
    with atomic_write(target) as part:
        part.write_text(page, encoding="utf-8")
    return target


def summary_table(run: Path) -> list[ArmSummary]:
    """Return one line an arm, the main one first; `cells` says a line, under COLUMNS.

    Raises InputError if `run` is no run directory.
    """
    data = read_run(run)
    return summarise(data.metrics, data.timings, data.arms, data.main) if data.arms else []


def headline_of(run: Path) -> str:
    """Return what happened in one sentence, as the page's headline says it.

    Raises InputError if `run` is no run directory.
    """
    data = read_run(run)
    rows = summarise(data.metrics, data.timings, data.arms, data.main) if data.arms else []
    return headline(rows, baseline_of(data.arms, data.main), data.planned_steps)
