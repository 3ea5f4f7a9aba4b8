"""Rows whose answer is a list: alternatives, any of which counts."""

from __future__ import annotations

import json

from cropi.schema import Prompt


def alternatives(prompt: Prompt) -> tuple[str, ...]:
    """Return the answers that count: the items of a list of texts or numbers, else the answer.

    The list is the row's own (verl's `ground_truth` too), which the answer holds as JSON. Only a
    list with a text in it is one of alternatives: [1, 2] is a formula.
    """
    text = prompt.answer.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return (prompt.answer,)
    try:
        items = json.loads(text)
    except ValueError:
        return (prompt.answer,)
    simple = [i for i in items if isinstance(i, str | int | float) and not isinstance(i, bool)]
    if not items or len(simple) < len(items) or not any(isinstance(i, str) for i in items):
        return (prompt.answer,)
    return tuple(i if isinstance(i, str) else json.dumps(i) for i in items)
