"""cropi compare: strategies against each other, over seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_reporter
from cropi.cli.report import report_study
from cropi.errors import InputError
from cropi.text import shown


def compare(
    config: Config,
    settings: Settings = None,
    strategies: Annotated[
        str,
        typer.Option(help="Strategies and variants, separated by commas; default: the config's"),
    ] = "",
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,5; default: the config's")] = "",
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
    from cropi.config.check import require_usable
    from cropi.study.study_plan import StudyPlan

    names = [name.strip() for name in strategies.split(",") if name.strip()]
    plan = StudyPlan.of(loaded, names, parse_seeds(seeds))
    require_usable(loaded, base)
    from cropi.report import write_run_report
    from cropi.store.lock import exclusive_lock
    from cropi.study.runner import run_study

    if jobs > 1 and loaded.scale != type(loaded.scale)():
        raise InputError(
            f"--jobs {jobs} is for runs in processes of this machine, and the config's scale "
            "places them elsewhere; remove one of the two"
        )
    reporter = make_reporter()
    count = len(plan.labels) * len(plan.seeds)
    reporter.info(f"cropi compare {config}  ->  {plan.root}   ({count} runs)", style="bold")
    if names and plan.baseline not in names:
        reporter.info(f"  {plan.baseline} is trained too: the others are compared with it")
    for line in loaded.remarks:
        reporter.warn(line)
    with exclusive_lock(plan.root):  # also while the page is drawn
        try:
            run_study(plan, base, reporter, jobs, draw=write_run_report)
        finally:
            if (plan.root / "cells").is_dir():
                report_study(plan.root)


MOST_SEEDS = 10_000


def parse_seeds(text: str) -> list[int] | None:
    """Seeds from numbers and ranges separated by commas; None where there is no text.

    Raises InputError for anything else.
    """
    if not text.strip():
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_seed(first) or (dash and not _is_seed(last)):
            raise InputError(
                f"--seeds {shown(text)}: {shown(part)} is not a seed; give e.g. 0-4 or 0,2,5"
            )
        low, high = int(first), int(last or first)
        if not 0 <= high - low < MOST_SEEDS:
            raise InputError(
                f"--seeds {shown(text)}: {shown(part)} is not a range of up to {MOST_SEEDS:,}; "
                "give the lower one first, e.g. 0-4"
            )
        seeds += range(low, high + 1)
    return seeds


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19
