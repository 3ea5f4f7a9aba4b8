"""Brackets: what they enclose, and where a text separates outside them."""

from __future__ import annotations

import re

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def encloses(text: str) -> bool:
    """Whether the first bracket closes at the end: not so in (1,2),(3,4)."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0 and place > 1:
            return place == len(text) - 1
    return False


def split(text: str, separator: re.Pattern[str]) -> list[str] | None:
    """Split at separators outside brackets; None if brackets do not match or an item is empty.

    A comma within a number of thousands (12,345) does not separate.
    """
    items: list[str] = []
    start = place = depth = 0
    while place < len(text):
        depth += (text[place] in "({[") - (text[place] in ")}]")
        match = separator.match(text, place) if depth == 0 else None
        if match is None or _THOUSANDS.match(text, place):
            place += 1
            continue
        items.append(text[start:place].strip())
        start = place = match.end()
    items.append(text[start:].strip())
    filled = [i for i in items if i]
    # "4, and 5" has two separators in a row.
    return filled if depth == 0 and filled and items[0] and items[-1] else None


def balanced(text: str) -> bool:
    """Whether a text has as many closing brackets of each kind as opening ones."""
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))
