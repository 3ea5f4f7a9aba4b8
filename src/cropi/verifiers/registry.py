"""Verifiers by name, or by the path of a user's function."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from cropi.errors import InputError
from cropi.verifiers.user import load_function
from cropi.verifiers.verdict import Verifier

BUILT_IN = {
    "math": "cropi.verifiers.math:MathVerifier",
    "exact": "cropi.verifiers.exact:verify",
    "numeric": "cropi.verifiers.numeric:verify",
    "choice": "cropi.verifiers.choice:verify",
    "reasoning_gym": "cropi.verifiers.reasoning_gym:ReasoningGymVerifier",
}


def resolve(name: str, folders: tuple[Path, ...] = ()) -> str:
    """Return the name that a worker can load anywhere: files as absolute paths.

    A file is looked up in the current directory, then in `folders`. Raises InputError if it is in
    none of them, or if the name is no built-in and no path of a function.
    """
    if name in BUILT_IN:
        return name
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of these"
        raise InputError(
            f"verifier {name!r} is none of {', '.join(BUILT_IN)}, file.py:function or "
            f"package.module:function; {hint}"
        )
    if not place.endswith(".py"):
        return name
    tried = [Path(place).expanduser().absolute(), *(f.absolute() / place for f in folders)]
    found = next((p for p in tried if p.is_file()), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(str(p) for p in tried))
        raise InputError(f"verifier {name!r}: {looked} is no file; give the path of a Python file")
    return f"{found}:{function}"


def load(spec: str) -> Verifier:
    """Return the verifier of a resolved name; what importing a user's module raises comes through.

    Raises InputError if the function is not there or has no known signature.
    """
    if spec not in BUILT_IN:
        return load_function(spec)
    module, _, name = BUILT_IN[spec].partition(":")
    found = getattr(importlib.import_module(module), name)
    made = found() if isinstance(found, type) else found
    assert isinstance(made, Verifier)
    return made
