"""What a caller of a Python function gave, before anything is done with it.

Annotations say what a function takes, and Python does not check them: a path where rows are wanted
would fail deep inside, by the name of an attribute. Each message ends with what to give instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.text import shown

PROMPTS_FIX = "give a list of Prompt, such as cropi.load_prompts(path)"
ROLLOUTS_FIX = "give the path of one file of rollouts, or cropi.read_rollouts(path)"
SCORES_FIX = "give what cropi.score returns, or cropi.read_scores(path)"
SELECTION_FIX = "give what cropi.select returns, cropi.read_selection(path), or a list of ids"
POLICY_FIX = "give the path of a model with its tokenizer, or cropi.load_policy(path)"


def require_kind(value: Any, kind: type | tuple[type, ...], argument: str, fix: str) -> None:
    """Raise InputError unless the argument's value is of that kind."""
    if not isinstance(value, kind):
        raise InputError(f"{argument} is {_described(value)}; {fix}")


def require_count(value: Any, argument: str, least: int = 1) -> int:
    """Return a whole number. Raises InputError for anything else, and for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{argument}={shown(value, 60)}: give a whole number from {least} on")
    return int(value)


def require_list_of(values: Any, kind: type, argument: str, fix: str) -> None:
    """Raise InputError unless the argument is a sequence whose members are all of that kind."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InputError(f"{argument} is {_described(values)}; {fix}")
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise InputError(f"{argument}[{place}] is {_described(value)}; {fix}")


def require_by_name(values: Any, argument: str, example: str) -> None:
    """Raise InputError unless the argument maps names to values, and has one at least."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{argument} is {_described(values)}; give names too: {example}")
    if not values:
        raise InputError(f"{argument} is empty; give at least one by its name: {example}")


def _described(value: Any) -> str:
    """A plain value as it is written; of anything larger what it is."""
    if value is None or isinstance(value, str | Path | bool | int | float):
        return shown(value, 60)
    return f"of the type {type(value).__name__}"
