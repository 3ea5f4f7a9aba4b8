"""The interface of a rollout format: how one trainer writes down what its policy answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from cropi.errors import InputError
from cropi.exchange.imports.logged import LogFile, LoggedResponse, Row, cell_names
from cropi.plugin_calls import calling
from cropi.plugins import KINDS, find_plugin, plugin_names, resolve_name
from cropi.prompts.row_files import NumberedRow
from cropi.text import shown

TITLE = KINDS["rollout_format"].title
FALLBACK_FORMATS = ("plain",)
"""Formats that are tried only if no other recognises a row."""


class RolloutFormat(Protocol):
    """One way to write rollouts down. An object reads all files of a folder, in their order."""

    def recognises(self, row: Row) -> bool:
        """Whether a row, such as a file's first, is of this format."""

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """The responses in the rows of one file. Raises InputError for what cannot be read."""


def all_formats() -> dict[str, RolloutFormat]:
    """An object of each built-in format, by name; the most general comes last."""
    names = plugin_names("rollout_format")
    ordered = [*(n for n in names if n not in FALLBACK_FORMATS), *FALLBACK_FORMATS]
    return {name: find_plugin("rollout_format", name)() for name in ordered}


def format_named(name: str) -> tuple[str, RolloutFormat]:
    """The format of a name, or of `file.py:object`, as it is called. Raises InputError if none."""
    full = resolve_name("rollout_format", name)
    with calling(TITLE, full, "making it"):
        return full, find_plugin("rollout_format", full)()


def recognised_format(row: Row, formats: dict[str, RolloutFormat]) -> str | None:
    """The name of the first format that recognises a row; None if none does."""
    for name, each in formats.items():
        with calling(TITLE, name, "recognises"):
            if each.recognises(row):
                return name
    return None


def row_with_reward(row: Row) -> Row:
    """The row with a reward of 0 unless it has one, to see whether only the reward is missing."""
    return {"reward": 0.0, **row}


def unrecognised_rows_error(where: str, row: Row) -> InputError:
    """The error for rows that no format recognises, or that only lack a reward."""
    columns = shown(", ".join(cell_names(row)), 300)
    if recognised_format(row_with_reward(row), all_formats()):
        return InputError(
            f"{where} holds a response and no reward (its columns are {columns}); name the column "
            "of the reward with --reward, or judge the responses by the answers of --prompts with "
            "--verifier"
        )
    return InputError(
        f"{where} is not a rollout in a known format (its columns are {columns}); give "
        f"one of {', '.join(all_formats())}, or rows with prompt, response and reward"
    )
