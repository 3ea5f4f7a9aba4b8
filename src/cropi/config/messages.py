"""What is wrong with a config, in one sentence that names the key, the value and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cropi.config.sections import RunConfig, Section


def explain(error: ValidationError, origin: str, kind: type[Section] = RunConfig) -> str:
    """Sum up what pydantic found, at most five problems, in one line."""
    problems = [_explain_one(e, kind) for e in error.errors()[:5]]
    subject = f"config {origin}" if kind is RunConfig else origin
    return f"{subject}: " + "; ".join(problems)


def _explain_one(problem: Any, kind: type[Section]) -> str:
    location = tuple(str(p) for p in problem["loc"] if not str(p).startswith("function-"))
    key = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(location[:-1], kind)
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
        return f"unknown key {key} (value {problem['input']!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if location else message
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(location: Sequence[str], kind: type[Section]) -> list[str]:
    """Return the keys allowed in the section at `location` below `kind`."""
    model: Any = kind
    for name in location:
        fields = getattr(model, "model_fields", {})
        if name in fields:
            model = _section_in(fields[name].annotation)
    return sorted(getattr(model, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """Return the Section class inside an annotation such as `list[PromptSource] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None
