"""Reports of runs, studies and diagnoses: HTML pages that work offline, and the same as a table.

`kit` is what pages are made of, `data` reads runs and studies and puts them into words and rows,
`pages` draws them. The pages and the command line share the words and the numbers. Importing this
package loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cropi.store.files import atomic_write
from cropi.store.lock import exclusive_file

if TYPE_CHECKING:
    from cropi.exchange.ranking.ranking import Ranking
    from cropi.study.comparison import Study

__all__ = ["rank_headline", "run_headline", "run_notes", "run_table", "study_headline",
           "study_notes", "study_table", "write_rank_report", "write_run_report",
           "write_study_report"]  # fmt: skip

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of text."""


def write_run_report(run: Path) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    Raises InputError if `run` is not a run directory or cannot be written to.
    """
    from cropi.report.data.run_data import read_run
    from cropi.report.pages.run_page import render

    return _write(run, render(read_run(run)))


def run_table(run: Path) -> Table:
    """Return the summary of a run, one row per arm, the main one first.

    Raises InputError if `run` is not a run directory.
    """
    from cropi.report.data.run_data import read_run
    from cropi.report.data.run_summary import COLUMNS, table_row

    return list(COLUMNS), [list(table_row(row)) for row in read_run(run).summary()]


def run_headline(run: Path) -> str:
    """Return what happened in one sentence, as the page's headline says it.

    Raises InputError if `run` is not a run directory.
    """
    from cropi.report.data.run_data import read_run

    return read_run(run).headline()


def write_study_report(root: Path) -> Study:
    """Measure a study and write results.parquet, study.json and report.html, each whole.

    Raises InputError if `root` is not a study's directory or cannot be written to.
    """
    from cropi.report.pages.study_page import render
    from cropi.study.comparison import measure_study
    from cropi.study.output import write_results

    study = measure_study(root)
    write_results(study, study_headline(study))
    _write(root, render(study))
    return study


def run_notes(run: Path) -> list[str]:
    """Return what is missing or damaged in a run, as its page lists it.

    Raises InputError if `run` is not a run directory.
    """
    from cropi.report.data.run_data import read_run

    return read_run(run).missing


def study_table(study: Study) -> Table:
    """Return the summary of a study, one row per strategy, in the order of the plan."""
    from cropi.report.data.study_summary import COLUMNS, table_rows

    return list(COLUMNS), [list(row) for row in table_rows(study)]


def study_headline(study: Study) -> str:
    """Return what a study found in one sentence, as the page's headline says it."""
    from cropi.report.data.study_summary import headline

    return headline(study)


def study_notes(study: Study) -> list[str]:
    """Return what a reader of a study should know beside its headline, as its page lists it."""
    from cropi.report.data.study_summary import further_notes

    return further_notes(study)


def write_rank_report(folder: Path, ranking: Ranking, commands: Sequence[str] = ()) -> Path:
    """Write `report.html` beside a ranking, and return its path.

    Raises InputError if `folder` cannot be written to.
    """
    from cropi.report.pages.rank_page import render

    return _write(folder, render(ranking, commands))


def rank_headline(ranking: Ranking) -> str:
    """Return what was ranked in one sentence, as the page's headline says it."""
    from cropi.report.pages.rank_page import headline

    return headline(ranking)


def _write(folder: Path, page: str) -> Path:
    target = folder / "report.html"
    with exclusive_file(target), atomic_write(target) as part:
        part.write_text(page, encoding="utf-8")
    return target
