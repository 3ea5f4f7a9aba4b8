"""Whether two readings mean the same: exactly where they are exact, part by part elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from cropi.verifiers.expressions import equal_equations, equal_formulas
from cropi.verifiers.families import CONSTANT, INTEGER, counted_otherwise, named_alike
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
)
from cropi.verifiers.notation import canonical_text
from cropi.verifiers.number_words import with_scale
from cropi.verifiers.quantity import Quantity, read_quantity
from cropi.verifiers.unit_names import same_unit


def equal(gold: Reading, stated: Reading) -> bool:
    """Whether a statement means the gold answer."""
    if gold == stated:
        return True
    if isinstance(gold, Conditioned) or isinstance(stated, Conditioned):
        return _equal_conditioned(gold, stated)
    if isinstance(gold, Assignment | Equation) or isinstance(stated, Assignment | Equation):
        return _equal_equations(gold, stated)
    match gold, stated:
        case Quantity(), Quantity():
            return gold.equals(stated)
        case Matrix(), Matrix():
            return _equal_matrices(gold, stated)
        case Union(), Union():
            return _equal_sets(gold.parts, stated.parts)
        case (Union(), Listing(brackets="")) | (Listing(brackets=""), Union()):
            return _equal_sets(_parts(gold), _parts(stated))
        case Listing(), Listing():
            return _equal_listings(gold, stated)
        case Interval(), Interval():
            return _equal_intervals(gold, stated)
        case (Listing(), Interval()) | (Interval(), Listing()):
            first, second = _as_interval(gold), _as_interval(stated)
            return first is not None and second is not None and _equal_intervals(first, second)
        case (Matrix(), Listing()) | (Listing(), Matrix()):
            return _equal_matrix_and_listing(gold, stated)
        case (Listing(items=(only,), brackets="{}"), other) | (
            other,
            Listing(items=(only,), brackets="{}"),
        ):
            return equal(only, other)
        case (Formula() | Quantity(), Formula() | Quantity()):
            return _equal_formulas(gold, stated)
    return False


def _equal_conditioned(gold: Reading, stated: Reading) -> bool:
    """Compare the mains, and the conditions if both sides state one."""
    conditions = [r.condition for r in (gold, stated) if isinstance(r, Conditioned)]
    if len(set(conditions)) > 1:
        return False
    one = gold.main if isinstance(gold, Conditioned) else gold
    other = stated.main if isinstance(stated, Conditioned) else stated
    if conditions[0] not in (INTEGER, CONSTANT):
        return equal(one, other)
    if not isinstance(gold, Conditioned):
        one = named_alike(other, one, conditions[0])
    elif not isinstance(stated, Conditioned):
        other = named_alike(one, other, conditions[0])
    return _equal_families(one, other)


def _equal_families(gold: Reading, stated: Reading) -> bool:
    if isinstance(gold, Listing) and isinstance(stated, Listing) and not gold.brackets:
        return _equal_sets(gold.items, stated.items, _equal_families)
    return any(equal(gold, each) for each in counted_otherwise(stated))


def _equal_equations(gold: Reading, stated: Reading) -> bool:
    """Compare equations as such, or a value with the right side of `name = value`."""
    if isinstance(gold, Assignment) and isinstance(stated, Assignment):
        names = _function(canonical_text(gold.name)), _function(canonical_text(stated.name))
        bare = [re.sub(r"_\{?\d+\}?$", "", name) for name in names]
        if (
            names[0] == names[1]
            or (bare[0] == bare[1] and bare != list(names) and set(bare) & set(names))
            or any(re.search(r"[a-z]{2}", n.lower()) for n in names)
        ):
            return equal(gold.value, stated.value)
    if isinstance(gold, Assignment | Equation) and isinstance(stated, Assignment | Equation):
        return equal_equations(gold.text, stated.text)
    if isinstance(gold, Equation) or isinstance(stated, Equation):
        return False
    one = gold.value if isinstance(gold, Assignment) else gold
    other = stated.value if isinstance(stated, Assignment) else stated
    return equal(one, other)


def _function(name: str) -> str:
    """Return one name for what is plotted against x: y, f(x) or g(x)."""
    return "y" if re.fullmatch(r"[fghy]\(x\)", name) else name


def _equal_matrices(gold: Matrix, stated: Matrix) -> bool:
    shapes = [[len(row) for row in m.rows] for m in (gold, stated)]
    if gold.kind != stated.kind or shapes[0] != shapes[1]:
        return False
    rows = zip(gold.rows, stated.rows, strict=True)
    return all(equal(g, s) for one, other in rows for g, s in zip(one, other, strict=True))


def _equal_matrix_and_listing(gold: Reading, stated: Reading) -> bool:
    """Compare a row or column with a tuple, and a matrix with a list of lists."""
    matrix, listing = (gold, stated) if isinstance(gold, Matrix) else (stated, gold)
    assert isinstance(matrix, Matrix)
    assert isinstance(listing, Listing)
    if matrix.kind != "matrix" or listing.brackets not in ("()", "[]"):
        return False
    rows = [list(row) for row in matrix.rows]
    if all(isinstance(item, Listing) and item.brackets == "[]" for item in listing.items):
        other = Matrix(
            tuple(item.items for item in listing.items if isinstance(item, Listing)), "matrix"
        )
        return _equal_matrices(matrix, other)
    cells = rows[0] if len(rows) == 1 else [row[0] for row in rows if len(row) == 1]
    if len(cells) != len(listing.items) or (len(rows) > 1 and len(cells) < len(rows)):
        return False
    return all(equal(c, i) for c, i in zip(cells, listing.items, strict=True))


def _equal_listings(gold: Listing, stated: Listing) -> bool:
    """Compare in order if either is bracketed like a tuple, otherwise in any order."""
    if len(gold.items) != len(stated.items):
        return False
    if gold.brackets != stated.brackets and gold.brackets.strip() and stated.brackets.strip():
        return False
    # Spaces alone are a sequence's in an answer, and in a response another way to write commas.
    if gold.brackets == " " or "".join((gold.brackets, stated.brackets)).strip("{} "):
        return all(equal(g, s) for g, s in zip(gold.items, stated.items, strict=True))
    return _equal_sets(gold.items, stated.items)


def _equal_sets(
    gold: Sequence[Reading],
    stated: Sequence[Reading],
    same: Callable[[Reading, Reading], bool] = equal,
) -> bool:
    """Whether each of the one can be paired with one of the other."""
    left = list(stated)
    for item in gold:
        partner = next((s for s in left if same(item, s)), None)
        if partner is None:
            return False
        left.remove(partner)
    return not left


def _equal_intervals(gold: Interval, stated: Interval) -> bool:
    if gold.variable and stated.variable and gold.variable.strip() != stated.variable.strip():
        return False
    return (
        gold.brackets == stated.brackets
        and equal(gold.low, stated.low)
        and equal(gold.high, stated.high)
    )


def _as_interval(reading: Reading) -> Interval | None:
    if isinstance(reading, Listing) and len(reading.items) == 2 and reading.brackets.strip("{} "):
        return Interval(*reading.items, reading.brackets)
    return reading if isinstance(reading, Interval) else None


def _parts(reading: Reading) -> Sequence[Reading]:
    return reading.parts if isinstance(reading, Union) else getattr(reading, "items", ())


def _equal_formulas(gold: Formula | Quantity, stated: Formula | Quantity) -> bool:
    if not same_unit(gold.unit, stated.unit):
        return False
    if isinstance(gold, Quantity) or isinstance(stated, Quantity):
        gold, stated = _unscaled(gold), _unscaled(stated)
        if isinstance(gold, Quantity) and isinstance(stated, Quantity):
            return gold.equals(stated)
    return equal_formulas(_latex(gold), _latex(stated))


def _unscaled(reading: Formula | Quantity) -> Formula | Quantity:
    """Return 2.5M, beside a number, as 2,500,000; other formulas and quantities as they are."""
    if isinstance(reading, Quantity):
        return reading
    number = read_quantity(with_scale(reading.text))
    return reading if number is None else replace(number, unit=reading.unit)


def _latex(reading: Formula | Quantity) -> str:
    """Return LaTeX; of a quantity exactly, or as its decimal if it was written as one."""
    if isinstance(reading, Formula):
        return reading.text
    value = reading.value / 100 if reading.percent else reading.value
    if reading.decimals:
        return f"{float(value)!r}" if abs(value) < 10**15 else str(value)
    return (
        f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        if value.denominator > 1
        else str(value)
    )


def is_readable(text: str) -> bool:
    """Whether a gold answer holds anything to compare: a number, a word, a letter or a command."""
    return bool(re.search(r"[^\W_]|\\[a-zA-Z]", canonical_text(text).replace("\\ldots", "")))
