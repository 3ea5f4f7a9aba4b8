"""Families of values: `x = \\frac{\\pi}{4} + k\\pi, k \\in \\mathbb{Z}`, `cx` for some constant c.

What the parameter is called means nothing. So it gets one name, which no other symbol has, and an
integer may be counted from another one on, or backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from cropi.verifiers.forms import Assignment, Formula, Listing, Reading

_INTEGERS = r"(?:\\mathbb|\\mathbf|\\text)\s*\{?\s*Z\s*\}?|Z"
_MEMBER = re.compile(
    rf"(?P<main>.*?)[\s,;:]*\(?\s*(?P<name>[a-zA-Z])\s*\\in\s*(?:{_INTEGERS})\s*\)?\s*"
)
_KIND = r"(?P<kind>integers?|constants?|real\s+(?:numbers?|constants?))"
_ANY = r"(?:(?:an?|any|all|some|each|every|arbitrary|real)\s+)*"
_DECLARED = (
    re.compile(rf"{_ANY}{_KIND}\s+(?P<name>[a-zA-Z])"),
    re.compile(rf"(?P<name>[a-zA-Z])\s+(?:is|being|are)?\s*{_ANY}{_KIND}"),
    re.compile(rf"{_ANY}(?P<name>[a-zA-Z])\s*\\in\s*(?P<kind>{_INTEGERS})"),
)
INTEGER, CONSTANT = "Z", "Q"
"""Names of the parameters: no answer uses them for anything else, nor sympy for a number."""
_WORD_AT_END = re.compile(r"(?<![\\a-zA-Z])[a-z]{2,}\s*\}?\s*\Z")
_SYMBOL = re.compile(r"\\text\w*\s*\{[^{}]*\}|\\[a-zA-Z]+|[a-zA-Z]")
_SHIFTS = ("(Z+1)", "(Z-1)", "(-Z)", "(1-Z)", "(-1-Z)")


def with_member(text: str) -> tuple[str, str] | None:
    """Return the text and the parameter of `text, k \\in \\mathbb{Z}`; None for another text."""
    match = _MEMBER.fullmatch(text) if "\\in" in text else None
    if match is None or match["name"] not in _symbols(match["main"]):
        return None
    if _WORD_AT_END.search(match["main"]):
        return None  # it is a condition in words: "for k in Z"
    return match["main"].rstrip("\\ "), match["name"]


def declared(condition: str) -> tuple[str, str] | None:
    """Return the parameter that a condition declares and its one name; None if it does not."""
    plain = re.sub(r"\\text\w*\s*\{([^{}]*)\}|\$", r" \1 ", condition).strip(" ,.")
    for pattern in _DECLARED:
        if (match := pattern.fullmatch(re.sub(r"\s+", " ", plain))) is not None:
            is_real = match["kind"].startswith(("constant", "real"))
            return match["name"], CONSTANT if is_real else INTEGER
    return None


def renamed(text: str, name: str, other: str) -> str:
    """Return a formula in which a symbol has another name."""
    return _SYMBOL.sub(lambda m: other if m[0] == name else m[0], text)


def named_alike(gold: Reading, stated: Reading, parameter: str) -> Reading:
    """Return a statement that declares no parameter with its only other symbol as that."""
    others = sorted(_symbols(_text(stated)) - _symbols(_text(gold)))
    if len(others) != 1 or parameter in _symbols(_text(stated)):
        return stated
    return _replaced(stated, others[0], parameter)


def counted_otherwise(reading: Reading) -> Iterator[Reading]:
    """Yield a family of integers as it is, and with its integer counted otherwise."""
    yield reading
    if INTEGER in _symbols(_text(reading)):
        for shift in _SHIFTS:
            yield _replaced(reading, INTEGER, shift)


def _symbols(text: str) -> set[str]:
    return {symbol for symbol in _SYMBOL.findall(text) if len(symbol) == 1}


def _text(reading: Reading) -> str:
    """Return the LaTeX of a reading, without the name that it gives to a value."""
    match reading:
        case Formula():
            return reading.text
        case Assignment():
            return _text(reading.value)
        case Listing():
            return " ; ".join(map(_text, reading.items))
    return ""


def _replaced(reading: Reading, name: str, other: str) -> Reading:
    match reading:
        case Formula():
            return replace(reading, text=renamed(reading.text, name, other))
        case Assignment():
            value = _replaced(reading.value, name, other)
            return replace(reading, value=value, text=renamed(reading.text, name, other))
        case Listing():
            items = tuple(_replaced(item, name, other) for item in reading.items)
            return replace(reading, items=items)
    return reading
