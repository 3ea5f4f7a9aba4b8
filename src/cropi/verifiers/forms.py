"""The forms in which an answer can be read: words, a number, a list, an interval, a matrix, ..."""

from __future__ import annotations

from dataclasses import dataclass

from cropi.verifiers.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Words:
    """Something that is compared as text alone, in its canonical form."""

    text: str


@dataclass(frozen=True, slots=True)
class Formula:
    """LaTeX for math-verify, with the unit that stood after it."""

    text: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Several answers; `brackets` is "", " " for spaces alone, "()", "[]", "(]", "[)" or "{}"."""

    items: tuple[Reading, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of numbers, from an inequality or set notation; `brackets` say what it includes."""

    low: Reading
    high: Reading
    brackets: str
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Union:
    """Intervals or sets joined by \\cup."""

    parts: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The rows of a LaTeX environment and its kind: matrix, vmatrix, Vmatrix or cases."""

    rows: tuple[tuple[Reading, ...], ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A name and its value, with the LaTeX of the whole equation."""

    name: str
    value: Reading
    text: str


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation between two expressions, in LaTeX."""

    text: str


@dataclass(frozen=True, slots=True)
class Conditioned:
    """An answer and the condition under which it holds."""

    main: Reading
    condition: str


Reading = (
    Quantity | Words | Formula | Listing | Interval | Union | Matrix | Assignment | Equation
    | Conditioned
)  # fmt: skip
