"""cropi report: draw the report of a run or a study again, and print its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.printing import make_reporter, print_table


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN", help="The directory of a run or a study")
    ],
) -> None:
    """Draw the report of a run or a study again: one HTML file that works offline.

    Example:

        cropi report runs/pocket
    """
    if (directory / "study.yaml").is_file() or (directory / "cells").is_dir():
        report_study(directory)
        return
    from cropi.report import write_run_report

    write_run_report(directory)
    print_run(directory)


def print_run(directory: Path) -> None:
    """Print the headline of a run, a short table and the path of the report."""
    from cropi.report import run_headline, run_notes, run_table

    reporter = make_reporter()
    reporter.info("")
    reporter.info(run_headline(directory), style="bold")
    print_table(*run_table(directory))
    for note in run_notes(directory):
        reporter.warn(note)
    reporter.info(f"report: {directory / 'report.html'}")


def report_study(root: Path) -> None:
    """Draw the page of a study, and print its headline and table."""
    from cropi.report import study_headline, study_notes, study_table, write_study_report

    study = write_study_report(root)
    reporter = make_reporter()
    reporter.info(f"\n{study_headline(study)}", style="bold")
    print_table(*study_table(study))
    for note in study_notes(study):
        reporter.warn(note)
    reporter.info(f"report: {root / 'report.html'}")
