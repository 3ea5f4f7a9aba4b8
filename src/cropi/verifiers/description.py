"""Readings in words, for a user who wants to know what a verifier takes an answer for."""

from __future__ import annotations

from fractions import Fraction

from cropi.verifiers.forms import (
    Assignment,
    Conditioned,
    Equation,
    Formula,
    Interval,
    Listing,
    Matrix,
    Reading,
    Union,
    Words,
)
from cropi.verifiers.quantity import Quantity

LARGEST_SHOWN = 400
"""Bits of a number that is shown in full."""


def described(reading: Reading) -> str:
    """Return the kind and content of a reading: `number 3/4`, `tuple (1; 2)`, `words "paris"`."""
    match reading:
        case Quantity():
            return f"number {_content(reading)}"
        case Words():
            return f"words {_content(reading)}"
        case Formula():
            return f"formula {_content(reading)}"
        case Listing(brackets="" | "{}"):
            return f"{len(reading.items)} values in any order: {_content(reading)}"
        case Listing():
            return f"{len(reading.items)} values in order: {_content(reading)}"
        case Interval():
            return f"interval {_content(reading)}"
        case Union():
            return f"union {_content(reading)}"
        case Matrix():
            return f"{reading.kind} of {len(reading.rows)} rows: {_content(reading)}"
        case Assignment():
            return f"{described(reading.value)}, named {reading.name}"
        case Equation():
            return f"equation {reading.text}"
        case Conditioned():
            return f"{described(reading.main)}, under the condition {reading.condition}"


def _content(reading: Reading) -> str:
    match reading:
        case Quantity():
            percent = "%" if reading.percent else ""
            return f"{_number(reading.value)}{percent}{reading.unit and f' {reading.unit}'}"
        case Words():
            return f'"{reading.text}"'
        case Formula():
            return f"{reading.text}{reading.unit and f' {reading.unit}'}"
        case Listing():
            inside = "; ".join(map(_content, reading.items))
            return f"{reading.brackets[:1]}{inside}{reading.brackets[1:]}"
        case Interval():
            ends = f"{_content(reading.low)}, {_content(reading.high)}"
            return f"{reading.brackets[0]}{ends}{reading.brackets[1]}"
        case Union():
            return " or ".join(map(_content, reading.parts))
        case Matrix():
            return " / ".join("; ".join(map(_content, row)) for row in reading.rows)
        case _:
            return described(reading)


def _number(value: Fraction) -> str:
    """Return a number as it is, or its size if it is very long."""
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
    return str(value) if size <= LARGEST_SHOWN else f"of {size:,} bits"
