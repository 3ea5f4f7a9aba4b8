"""What a JSON object in a response holds as its answer: `{"steps": [6, 8], "answer": 48}`."""

from __future__ import annotations

import json
import re

from cropi.verifiers.boxes import BOX, last_boxed

_START = re.compile(r'\{\s*"')
_KEY = re.compile(r"(?i)(?:(?:the|my|final|correct)[\s_-]*)*answer")
_LONE_BACKSLASH = re.compile(r'(?<!\\)((?:\\\\)*)\\(?!["\\/n])')
"""One that models write before LaTeX commands in JSON, where two would be right."""
_MOST_OBJECTS = 8
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


def answer_in_json(text: str) -> tuple[str, int] | None:
    """Return the answer of the last object that has one, and where the object ends.

    None without such an object, before a box, or if its answer is another object or empty.
    """
    for start in reversed([m.start() for m in _START.finditer(text)][-_MOST_OBJECTS:]):
        try:
            rest = _LONE_BACKSLASH.sub(r"\1\\\\", text[start:])
            content, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            continue
        if BOX.search(rest, end):
            return None
        answers = [value for key, value in content.items() if _KEY.fullmatch(key)]
        stated = _written(answers[-1]) if answers else ""
        if stated:
            return stated, max(start + 1, len(text) - len(rest) + end)
    return None


def _written(value: object) -> str:
    """Return a value as a response would write it; nothing of an object."""
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return last_boxed(value) or value.strip() if isinstance(value, str) else ""
