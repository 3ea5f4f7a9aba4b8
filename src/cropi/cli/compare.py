"""cropi compare: strategies against each other, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_console, print_table
from cropi.errors import InputError


def compare(
    config: Config,
    settings: Settings = None,
    strategies: Annotated[
        str,
        typer.Option(help="Strategies and variants, with commas; default: the config's"),
    ] = "",
    seeds: Annotated[str, typer.Option(help="E.g. 0-4 or 0,2,5; default: the config's")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once")] = 1,
) -> None:
    """Train strategies from the same start on the same pool, over seeds, and compare them.

    Each run (a strategy under a seed) has an ordinary run directory; the runs of a seed share their
    rollouts. What was stopped continues when the same command is given again, and strategies or
    seeds can be added later. The report has curves, accelerations in steps and in compute with 95%
    intervals, and what was selected.

    Examples:

        cropi compare pocket --strategies full,random,cropi --seeds 0-2 --jobs 2

        cropi compare my.yaml selection.ratio=0.2 --seeds 0-4
    """
    loaded, base = load(config, settings)
    from cropi.progress import ProgressReporter
    from cropi.study.plan import StudyPlan

    plan = StudyPlan.of(
        loaded, [name.strip() for name in strategies.split(",") if name.strip()], parsed(seeds)
    )
    from cropi.report import write_run_report
    from cropi.store.lock import exclusive_lock
    from cropi.study.runner import run_study

    reporter = ProgressReporter(make_console())
    count = len(plan.labels) * len(plan.seeds)
    reporter.say(f"cropi compare {config}  ->  {plan.root}   ({count} runs)", style="bold")
    with exclusive_lock(plan.root):  # while the page is drawn, too
        try:
            run_study(plan, base, reporter, jobs, draw=write_run_report)
        finally:
            if (plan.root / "cells").is_dir():
                print_study(plan.root)


def print_study(root: Path) -> None:
    """Draw a study's page, and print its headline and table."""
    from cropi.progress import ProgressReporter
    from cropi.report import study_headline, study_table, write_study_report

    study = write_study_report(root)
    reporter = ProgressReporter(make_console())
    reporter.say(f"\n{study_headline(study)}", style="bold")
    print_table(*study_table(study))
    for note in study.notes:
        reporter.warn(note)
    reporter.say(f"report: {root / 'report.html'}")


def parsed(seeds: str) -> list[int] | None:
    """Seeds from text: numbers and ranges with commas; None where there is no text.

    Raises InputError for anything else.
    """
    if not seeds.strip():
        return None
    found: list[int] = []
    for part in seeds.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"--seeds {seeds!r}: {part!r} is no seed; give e.g. 0-4 or 0,2,5")
        found += range(int(first), int(last or first) + 1)
    return found
