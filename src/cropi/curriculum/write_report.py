"""The last step: gather all metrics and draw the page."""

from __future__ import annotations

from cropi.curriculum.session import Session
from cropi.report import write_run_report


def write_report(session: Session) -> None:
    """Write report.html into the run directory."""
    session.directory.gather_metrics()
    with session.reporter.phase("report") as bar:
        bar.note = str(write_run_report(session.directory.root))
