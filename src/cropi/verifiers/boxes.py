"""Boxes: what `\\boxed{...}` holds, also within another, and several that are one statement."""

from __future__ import annotations

import re
from typing import NamedTuple

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[\w\\]))")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>\\?\w{1,40}))|\\.|[{}]", re.DOTALL)
LONGEST_BARE = 40
"""Characters between `\\boxed 12`, which has no braces, and the end of the text."""
_DEEPEST = 3
"""Boxes within boxes."""
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;]|\\[,;()\[\] ]|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)


class _Box(NamedTuple):
    """Where a box starts and ends, and where what it holds does."""

    start: int
    inside: tuple[int, int]
    end: int


def last_boxed(text: str) -> str | None:
    """Return what the last complete \\boxed{...} holds, inner boxes opened; None without one.

    Boxes that only "and" or a comma separates are one statement.
    """
    box = last_box(text)
    return box and box[0]


def last_box(text: str, depth: int = 0) -> tuple[str, int] | None:
    """Return what the last box holds, as `last_boxed`, and where it ends."""
    boxes = _outer_boxes(text)
    if not boxes:
        return None
    statements = [text[slice(*boxes[-1].inside)]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = text[before.end : after.start]
        if not between.strip(" $\n") or not _BETWEEN_BOXES.fullmatch(between):
            break
        statements.append(text[slice(*before.inside)])
    if depth < _DEEPEST:
        statements = [inner[0] if (inner := last_box(s, depth + 1)) else s for s in statements]
    return ", ".join(reversed(statements)).strip(), boxes[-1].end


def _outer_boxes(text: str) -> list[_Box]:
    """Return the complete boxes that are within no other, in order."""
    boxes: list[_Box] = []
    opened: list[re.Match[str]] = []
    for match in _BOX_OR_BRACE.finditer(text):
        if match["bare"]:
            if len(text) < match.end() + LONGEST_BARE:
                boxes.append(_Box(match.start(), match.span("bare"), match.end()))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match)
        elif match[0] == "}" and opened and (opening := opened.pop())[0] != "{":
            while boxes and boxes[-1].start > opening.start():
                boxes.pop()
            boxes.append(_Box(opening.start(), (opening.end(), match.start()), match.end()))
    return boxes
