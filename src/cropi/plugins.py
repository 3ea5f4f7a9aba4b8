"""Plug-ins: the built-in ones by name, the user's own by `package.module:object`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from cropi.errors import InputError


def find_plugin(kind: str, name: str, builtin: Mapping[str, str]) -> Any:
    """Return the object that `name` stands for: a key of `builtin` or a dotted path.

    Raises InputError if there is none.
    """
    path = builtin.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not module_name.replace(".", "_").isidentifier() or not colon or not attribute:
        close = difflib.get_close_matches(name, builtin, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "your own is package.module:object"
        raise InputError(f"unknown {kind} {name!r}; allowed: {', '.join(sorted(builtin))}; {hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{kind} {name!r}: no module named {error.name!r}; install it or put its folder on "
            "PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(
            f"{kind} {name!r}: module {module_name} has no {attribute!r}; check the spelling"
        )
    return getattr(module, attribute)
