"""cropi run: a whole curriculum."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_reporter
from cropi.cli.report import print_run

if TYPE_CHECKING:
    from cropi.config import RunConfig


def run(
    config: Config,
    settings: Settings = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print the programs that training would start"),
    ] = False,
) -> None:
    """Run a whole curriculum: rollouts, influence, selection, GRPO, evaluation, report.

    A run that was stopped continues when the same command is given again.

    Examples:

        cropi run pocket

        cropi run my.yaml selection.ratio=0.2 name=wider
    """
    loaded, base = load(config, settings)
    if dry_run:
        _print_commands(loaded, base)
        return
    import cropi

    reporter = make_reporter()
    reporter.info(f"cropi {config}  ->  {loaded.url or loaded.directory}", style="bold")
    print_run(cropi.run(loaded, base, reporter))


def _print_commands(config: RunConfig, base: Path | None) -> None:
    """Print what can be pasted into a shell, each stage under a comment with its title."""
    from rich.console import Console

    from cropi.config.check import require_usable
    from cropi.curriculum.dry_run import training_commands
    from cropi.progress import ProgressReporter

    require_usable(config, base)
    reporter = ProgressReporter(Console(stderr=True))
    for title, commands in training_commands(config, base, reporter):
        typer.echo(f"# {title}")
        for command in commands:
            typer.echo(shlex.join(command))
