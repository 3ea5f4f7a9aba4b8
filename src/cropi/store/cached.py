"""The one place that decides whether something on disk may be used again.

A step of a run leaves one output: a Parquet table, a JSON record, or a folder with a record in it.
Each carries the fingerprint of the inputs that it was made from. `cached` makes an output only if
it is missing, damaged or made from other inputs, which is all there is to resuming a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.files import POLICY_RECORD, read_table, remove, table_metadata
from cropi.store.ledger import Ledger

FINGERPRINT = "inputs_fingerprint"
"""The key of a record that holds the fingerprint of its inputs."""
TABLE_FINGERPRINT = f"cropi.{FINGERPRINT}"
"""The same in the metadata of a Parquet file."""
ASIDE = ".unusable"
"""What is appended to the name of an output that is being made again."""


def cached(
    output: Path,
    inputs: Any,
    make: Callable[[str], object],
    ledger: Ledger | None = None,
    also: Callable[[], Iterable[Path]] = tuple,
) -> Path:
    """Return `output`, made by `make(fingerprint)` unless it is there and is current.

    `inputs` is everything that determines the output, as plain values; `make` must write `output`
    atomically and record the fingerprint that it is given in it (`stamp` for a table, `FINGERPRINT`
    for a record). A `ledger` lists it with the hashes of its files and of what `also` returns, the
    other files that `make` writes: if any of them is missing or has changed, all are made again.
    Raises InputError, naming the damaged file, if that cannot be done.
    """
    expected = fingerprint(inputs)
    if ledger is None:
        if recorded_fingerprint(output) != expected:
            make(expected)
            assert recorded_fingerprint(output) == expected, f"{output} does not record its inputs"
    elif not ledger.is_current(output, expected):
        _make_again(output, expected, make, ledger)
        ledger.record(output, expected, [output, *also()])
    remove(_aside(output))
    return output


def _make_again(output: Path, expected: str, make: Callable[[str], object], ledger: Ledger) -> None:
    damaged = ledger.damaged(output)
    with _moved_aside(output):  # `make` should not take a damaged file for a finished one
        try:
            make(expected)
        except InputError as error:
            if damaged is None:
                raise
            raise InputError(
                f"{damaged} is damaged or missing and could not be made again: {error}"
            ) from error


@contextmanager
def _moved_aside(output: Path) -> Iterator[None]:
    """Take an output that cannot be used out of the way, and put it back if there is no new one."""
    aside = _aside(output)
    if output.exists():
        remove(aside)
        os.replace(output, aside)
    try:
        yield
    finally:
        if aside.exists() and not output.exists():
            os.replace(aside, output)


def _aside(output: Path) -> Path:
    return output.with_name(output.name + ASIDE)


def is_current(output: Path, inputs_fingerprint: str) -> bool:
    """Whether an output is there and was made from the inputs with this fingerprint."""
    return recorded_fingerprint(output) == inputs_fingerprint


def recorded_fingerprint(output: Path) -> str | None:
    """Return the fingerprint that an output carries; None if it is missing or damaged."""
    if output.suffix == ".parquet":
        return _of_table(output)
    value = read_record(output if output.suffix == ".json" else output / POLICY_RECORD)
    recorded = value.get(FINGERPRINT)
    return recorded if isinstance(recorded, str) else None


def stamp(inputs_fingerprint: str) -> dict[str, str]:
    """Return the metadata by which a Parquet file carries the fingerprint of its inputs."""
    return {TABLE_FINGERPRINT: inputs_fingerprint}


def read_record(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _of_table(path: Path) -> str | None:
    try:
        return table_metadata(read_table(path)).get(TABLE_FINGERPRINT)
    except InputError:
        return None
