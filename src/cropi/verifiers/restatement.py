"""Statements that say their answer twice: `60 minutes (= 1 hour)`, `6\\pi \\approx 18.85`."""

from __future__ import annotations

import re
from dataclasses import replace

from cropi.verifiers.notation import ascii_notation, normalise
from cropi.verifiers.number_words import in_digits
from cropi.verifiers.quantity import Quantity, read_quantity
from cropi.verifiers.statement import Statement

_OPTION = re.compile(
    r"\\text\w*\s*\{\s*\((?P<letter>[A-J])\)(?:\s*\}(?:\s|\\[\s,;])*|(?P<open>\s))"
    r"(?!\s*(?:and\b|or\b|[,;&(]))(?P<rest>.*\S)",
    re.DOTALL,
)
_NEAR = 200
_REMARK = re.compile(
    r"[ \t]{0,3}\(\s*(?:(?P<sign>=|\\approx)|or\b|i\.e\.,?)?(?P<other>[^()\n]*\d[^()\n]*)\)"
    r"(?P<rest>[^()\d\n]*)\Z"
)
_ROUNDED = re.compile(r"(?<=\S)\s*\\approx\s*(?P<other>[-$]?\d[^()=,;\n]*)\Z")
_VALUES = (
    re.compile(r"\d+[^\d()]*\d+[^\d()]*\Z"),
    re.compile(r"[-$]?\d[\d.,/]*[^\d()]*\Z"),
)
"""What a text ends in: two numbers with units, else one."""


def ways_to_say(statement: Statement) -> list[Statement]:
    """Return each way in which a statement says its answer; the statement itself if it is one.

    A remark in parentheses with another number and unit (`37°C (98.6°F)`) is left out.
    """
    option = _OPTION.fullmatch(statement.text)
    if option is not None:
        beside = option["rest"].removesuffix("}") if option["open"] else option["rest"]
        texts = (statement.text, option["letter"], beside)
        return [replace(statement, text=text) for text in texts]
    text = ascii_notation(statement.text)
    near = max(0, len(text) - _NEAR)
    rounded = _ROUNDED.search(text, near)
    if rounded is not None:
        return [statement, replace(statement, text=rounded["other"].rstrip(" .$*\\])"))]
    remark = _REMARK.search(text, near)
    if remark is None:
        return [statement]
    before = text[: remark.start()]
    without = replace(statement, text=before + remark["rest"])
    one, other = _last_quantity(before), _quantity(remark["other"])
    is_same = one.equals(other) if one and other else remark["sign"] is not None
    if is_same or remark["sign"] == "\\approx":
        return [without, replace(statement, text=remark["other"].strip())]
    apart = one and other and one.unit and other.unit
    return [without] if remark["sign"] or apart else [statement]


def _last_quantity(text: str) -> Quantity | None:
    """Return the quantity in which a text ends, such as 1 hour 30 minutes."""
    text = in_digits(text[-_NEAR:])
    ends = (pattern.search(text) for pattern in _VALUES)
    return next((q for end in ends if end and (q := _quantity(end[0])) is not None), None)


def _quantity(text: str) -> Quantity | None:
    return read_quantity(normalise(text.strip("*$ ")))
