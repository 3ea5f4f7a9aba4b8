"""Commands about whole runs: run, report, config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.compare import print_study
from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_console, print_summary

config_app = typer.Typer(help="Look at a config, or check one.", no_args_is_help=True)


def run(config: Config, settings: Settings = None) -> None:
    """Run a whole curriculum: rollouts, influence, selection, GRPO, evaluation, report.

    A run that was stopped goes on when the same command is given again.

    Examples:

        cropi run pocket

        cropi run my.yaml selection.ratio=0.2 name=wider
    """
    loaded, base = load(config, settings)
    import cropi
    from cropi.progress import ProgressReporter

    console = make_console()
    reporter = ProgressReporter(console)
    reporter.say(f"cropi {config}  ->  {loaded.directory}", style="bold")
    directory = cropi.run(loaded, base, reporter)
    print_summary(console, directory)


def report(run: Annotated[Path, typer.Argument(help="A run's or a study's directory")]) -> None:
    """Draw the report of a run or a study again: one HTML file that works offline.

    Example:

        cropi report runs/pocket
    """
    if (run / "study.yaml").is_file():
        print_study(run)
        return
    from cropi.report import write_run_report

    write_run_report(run)
    print_summary(make_console(), run)


@config_app.command("show")
def config_show(config: Config, settings: Settings = None) -> None:
    """Print the resolved config: every setting with its value."""
    from cropi.config import to_yaml

    loaded, _ = load(config, settings)
    typer.echo(to_yaml(loaded), nl=False)


@config_app.command("check")
def config_check(config: Config, settings: Settings = None) -> None:
    """Validate a config, and that the files it names are there, without running anything."""
    from cropi.config import check_files

    loaded, base = load(config, settings)
    check_files(loaded, base)
    typer.echo(f"{config} is valid")


@config_app.command("schema")
def config_schema(
    page: Annotated[
        bool, typer.Option("--markdown", help="Print docs/settings.md, the page of all settings")
    ] = False,
) -> None:
    """Print the JSON schema of a config, with which editors complete and check one.

    Example:

        cropi config schema > cropi.schema.json
    """
    import json

    from cropi.config.settings_page import json_schema, markdown

    typer.echo(markdown() if page else json.dumps(json_schema(), indent=2), nl=not page)
