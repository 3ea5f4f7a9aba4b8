"""Prompts from reasoning-gym's procedural tasks (the extra `cropi[gym]`)."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from typing import Any

from cropi.errors import InputError
from cropi.prompts.values import plain

DEFAULT_SIZE = 500

Row = dict[str, Any]


def load_task(task: str, size: int | None, seed: int, options: Mapping[str, Any]) -> list[Row]:
    """Generate `size` rows of a task; each keeps its entry, by which the verifier scores.

    Raises InputError if reasoning-gym is missing, the task is unknown, or an option is wrong.
    """
    dataset = open_task(task, size or DEFAULT_SIZE, seed, options)
    return [_row(task, dict(options), entry) for entry in dataset]


def open_task(task: str, size: int, seed: int, options: Mapping[str, Any]) -> Any:
    """Return reasoning-gym's dataset of a task, which generates and scores entries.

    Raises InputError as `load_task` does.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise InputError(
            f"reasoning_gym task {task!r} needs the package reasoning-gym; "
            "install it with: pip install 'cropi[gym]'"
        ) from None
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see its gallery for the names"
        raise InputError(f"reasoning_gym has no task {task!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"reasoning_gym task {task!r} refuses the options {dict(options)}: {error}; mend "
            "`options` in the config"
        ) from None


def _row(task: str, options: Row, entry: Row) -> Row:
    kept = {"task": task, "options": options, **_frozen(entry)}
    answer = entry.get("answer")
    row = {"prompt": entry["question"], "source": task, "extra": {"reasoning_gym": kept}}
    return row if answer is None else {**row, "answer": answer}


def _frozen(entry: Row) -> Row:
    """Return the entry as JSON, and as a Python literal where JSON would change it.

    Some tasks (arc_agi, rearc) compare tuples in their metadata, which JSON turns into lists.
    """
    stored = json.loads(json.dumps(entry, default=_foreign))
    if stored == entry:
        return {"entry": stored}
    literal = repr(entry)
    try:
        exact = ast.literal_eval(literal) == entry
    except (ValueError, SyntaxError):
        exact = False
    return {"entry": stored, **({"literal": literal} if exact else {})}


def _foreign(value: Any) -> Any:
    try:
        return plain(value)
    except TypeError:
        return str(value)


def thawed(kept: Mapping[str, Any]) -> Row:
    """Return the entry as reasoning-gym made it."""
    literal = kept.get("literal")
    return ast.literal_eval(literal) if literal is not None else dict(kept["entry"])
