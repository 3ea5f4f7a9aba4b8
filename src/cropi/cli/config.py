"""cropi config: show a config, or check it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_reporter
from cropi.text import printable

config_app = typer.Typer(help="Show a config, or check it.", no_args_is_help=True)


@config_app.command()
def show(config: Config, settings: Settings = None) -> None:
    """Print the resolved config: every setting with its value.

    Example:

        cropi config show pocket selection.ratio=0.2
    """
    from cropi.config import to_yaml

    loaded, _ = load(config, settings)
    typer.echo(to_yaml(loaded), nl=False)


@config_app.command()
def check(config: Config, settings: Settings = None) -> None:
    """Check a config without running anything: settings, names, files, first rows and verifiers.

    Example:

        cropi config check my.yaml
    """
    from cropi.config.check import require_usable
    from cropi.plugins import is_built_in
    from cropi.study.study_plan import StudyPlan

    loaded, base = load(config, settings)
    require_usable(loaded, base)
    remarks = list(loaded.remarks)
    if not is_built_in("trainer", loaded.training.engine.name):
        from cropi.curriculum.run_context import check_trainer

        remarks += check_trainer(loaded)
    StudyPlan.of(loaded.model_copy(update={"out": "."}))  # a bucket can have runs, but no study
    for line in remarks:
        make_reporter().warn(line)
    typer.echo(f"{printable(config)} is valid")


@config_app.command()
def schema(
    page: Annotated[
        bool, typer.Option("--markdown", help="Print docs/settings.md, the page of all settings")
    ] = False,
) -> None:
    """Print the JSON schema of a config, with which editors complete and check one.

    Example:

        cropi config schema > cropi.schema.json
    """
    from cropi.config.settings_page import json_schema, markdown

    typer.echo(markdown() if page else json.dumps(json_schema(), indent=2), nl=not page)
