"""The command line. It imports no torch until a command that needs it runs.

An `InputError` becomes one sentence on stderr and exit code 2; anything else that escapes is a
defect and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cropi import __version__
from cropi.cli import (
    compare,
    config,
    diagnose,
    evaluate,
    export,
    features,
    judge,
    plan,
    rank,
    report,
    rollout,
    run,
    score,
    select,
    train,
    verify,
)
from cropi.cli.command_paths import Command
from cropi.cli.flag_names import in_flags
from cropi.cli.torchrun import launched
from cropi.errors import InputError, require_supported_system
from cropi.store.files import DISK_ERRORS, cannot_write
from cropi.store.remote import with_urls
from cropi.text import printable, shortened

app = typer.Typer(
    name="cropi",
    help="Train language models with verifiable rewards on a tenth of the data: curriculum RL "
    "with off-policy influence guidance (arXiv 2510.26491).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run.run,
    plan.plan,
    compare.compare,
    rank.rank,
    verify.verify,
    rollout.rollout,
    judge.judge,
    features.features,
    score.score,
    select.select,
    train.train,
    evaluate.evaluate,
    export.export,
    report.report,
):
    app.command(cls=Command)(command)
app.add_typer(diagnose.diagnose_app, name="diagnose")
app.add_typer(config.config_app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cropi {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options of the command line as a whole."""


INTERRUPTED = 130
LONGEST_MESSAGE = 8_000
"""Characters: 20 problems of a config fit in."""


def main() -> None:
    """Run the command line."""
    _bound_spinning()
    _print_anything()
    warnings.showwarning = _show_warning
    try:
        require_supported_system()
        _require_folder()
        app()
    except InputError as error:
        _fail(_as_typed(str(error)))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _fail(_of_disk(error))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
            typer.echo("interrupted; the same command continues from what is finished", err=True)
        raise


def _require_folder() -> None:
    """Raise InputError where the folder that this process is in has been removed."""
    try:
        Path.cwd()
    except OSError:
        raise InputError(
            "the current directory does not exist any more; change to one that does, then try again"
        ) from None


def _of_disk(error: OSError) -> str:
    """The message for a file that the system refuses, which may be an input or an output."""
    if isinstance(error, PermissionError):
        place = error.filename or "a file"
        return f"{place}: {error.strerror}; give your user the right to read it (or to write there)"
    return str(cannot_write(Path(error.filename or "a file"), error))


def _bound_spinning() -> None:
    """Let idle OpenMP threads spin for microseconds, not milliseconds; before torch is loaded.

    By default they spin so long that generation gets 10 to 30 times slower as soon as anything
    else wants a core, such as our verifiers' process; without spinning it is 1.5 times slower on a
    quiet machine. See docs/decisions.md.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _print_anything() -> None:
    """Let what a stream's encoding lacks be printed as escapes, rather than end hours of work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _as_typed(message: str) -> str:
    """The message with the flags of the command that was called."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    commands = getattr(typer.main.get_command(app), "commands", {})
    options = {p.name or "" for p in commands[name].params} if name in commands else set()
    return in_flags(message, name, options)


def _fail(message: str) -> NoReturn:
    """Print in one line what is wrong with the input, and exit."""
    launched().let_first_fail()
    typer.echo(f"error: {_line(message)}", err=True)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {_line(_as_typed(str(message)))}", err=True)


def _line(message: str) -> str:
    """A message in one line, which calls copies and outputs by their URLs."""
    return shortened(printable(" ".join(with_urls(message).split())), LONGEST_MESSAGE)


if __name__ == "__main__":
    main()
