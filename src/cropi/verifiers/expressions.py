"""Equality of formulas by math-verify, with its traps closed.

math-verify rounds to six decimals and treats tiny differences as zero. So a constant is compared by
its value with 30 digits, relative to its size, and a verdict "equal" on symbols is tried at points.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from cropi.verifiers.quantity import read_quantity

_DIGITS = 30
LONGEST = 600
"""Characters of a formula; the parser's time grows with their square."""
_POINTS = (0, 1, 2, 3)
_EXACT, _ROUNDED = 1e-20, 1e-6


def silence_math_verify() -> None:
    """Turn off its warning that timeouts are off: the worker's deadline replaces them."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def equal_formulas(gold: str, stated: str) -> bool:
    """Whether two formulas in LaTeX are equal; False if one cannot be parsed.

    Formulas with symbols are compared at points, positive and negative ones, where both have real
    values; without such points math-verify decides.
    """
    one, other = _parsed(gold), _parsed(stated)
    if one is None or other is None:
        return False
    symbols = sorted({s.name for e in (one, other) for s in e.free_symbols})
    points = _POINTS if symbols else _POINTS[:1]
    counted = _counted(one) | _counted(other)
    verdicts = [_same_at(one, other, _point(symbols, counted, p)) for p in points]
    usable = [v for v in verdicts if v is not None]
    if False in usable:
        return False
    return len(usable) >= min(len(points), 2) or (not usable and _verified(one, other))


def equal_constants(one: str, other: str) -> bool:
    """Whether two formulas without symbols have one value."""
    left, right = _parsed(one), _parsed(other)
    if left is None or right is None or left.free_symbols or right.free_symbols:
        return False
    return _same_at(left, right, {}) is True


def equal_equations(gold: str, stated: str) -> bool:
    """Whether two equations are equal up to a constant factor and the order of their sides."""
    differences = [_difference(text) for text in (gold, stated)]
    if None in differences:
        return False
    from sympy import simplify

    one, other = differences
    if one.free_symbols != other.free_symbols:
        return False
    try:
        ratio = simplify(one / other)
    except Exception:  # noqa: BLE001  (sympy raises anything)
        return False
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def _difference(equation: str) -> Any:
    left, _, right = equation.partition("=")
    one, other = _parsed(left), _parsed(right)
    try:
        return None if one is None or other is None else (one - other).doit()
    except Exception:  # noqa: BLE001  (sympy raises anything)
        return None


@lru_cache(maxsize=8192)
def _parsed(latex: str) -> Any:
    """Return sympy's expression of a formula; None if math-verify cannot parse it in time."""
    if len(latex) > LONGEST or _is_enormous(latex):
        return None
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse
    from sympy import Basic

    # One letter after another is a product; more in one run is no formula.
    text = re.sub(r"(?<![\\a-zA-Z])(\w)\*(?=\w)", r"\1 \\cdot ", latex)
    text = re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"{(\\frac{\1\\pi}{180})}", text)
    text = re.sub(r"(?<=[\w)}])\*(?=[\w(\\])", r" \\cdot ", text)
    notation = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True)
    readings = parse(
        f"\\boxed{{{text}}}",
        extraction_config=[LatexExtractionConfig(normalization_config=notation)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return (
        _with_imaginary_unit(readings[0]) if readings and isinstance(readings[0], Basic) else None
    )


_EXPONENT = re.compile(r"\^\s*(?:(\d)|\{)")
_FACTORIAL = re.compile(r"!\s*\)\s*!|!\s*!|(\d+)\s*!(?!\s*!)")
_LARGEST_EXPONENT, _LARGEST_FACTORIAL, _LARGEST_CHOICE, _TALLEST = 10**5, 10**4, 10**6, 4


def _is_enormous(latex: str) -> bool:
    """Whether a formula holds a power, factorial or sum that would take minutes to evaluate."""
    if any(
        int(n or _LARGEST_FACTORIAL + 1) > _LARGEST_FACTORIAL for n in _FACTORIAL.findall(latex)
    ):
        return True
    if re.search(r"binom\s*\{[^{}]*\^", latex):
        return True
    if "binom" in latex and any(len(n) > 6 for n in re.findall(r"\d+", latex.replace(",", ""))):
        return True
    return any(_is_enormous_exponent(each) for each in _exponents(latex))


def _exponents(latex: str) -> Iterator[str]:
    """Yield what stands in braces after each ^, also of a sum, whose upper limit that is."""
    for match in _EXPONENT.finditer(latex):
        depth, end = 1, match.end()
        while match[1] is None and end < len(latex) and depth:
            depth += {"{": 1, "}": -1}.get(latex[end], 0)
            end += 1
        yield latex[match.start(1) if match[1] else match.end() : end].removesuffix("}")


def _is_enormous_exponent(exponent: str) -> bool:
    if exponent.count("^") >= _TALLEST:
        return True
    if re.search(r"[a-zA-Z]", exponent):
        return False
    quantity = read_quantity(exponent)
    if quantity is None:
        return "^" in exponent
    return abs(quantity.value) > _LARGEST_EXPONENT


def _with_imaginary_unit(expression: Any) -> Any:
    """Return an expression whose free symbol `i` is the imaginary unit."""
    from sympy import I

    units = {s: I for s in expression.free_symbols if s.name == "i"}
    return expression.subs(units) if units else expression


def _counted(expression: Any) -> set[str]:
    """Return the symbols in the limits of sums and products, which stand for whole numbers."""
    from sympy.concrete.expr_with_limits import ExprWithLimits

    sums = [e for e in expression.atoms(ExprWithLimits) if e.func.__name__ in ("Sum", "Product")]
    bounds = [bound for e in sums for limit in e.limits for bound in limit[1:]]
    return {s.name for bound in bounds for s in bound.free_symbols}


def _point(symbols: Sequence[str], counted: set[str], place: int) -> dict[str, Any]:
    """Return values for symbols: small whole numbers for the bounds of sums."""
    from sympy import Integer

    values = dict(zip(symbols, _values(place), strict=False))
    return values | {name: Integer(place + 2 + n) for n, name in enumerate(sorted(counted))}


def _values(start: int) -> Iterator[Any]:
    """Yield values for symbols in order: rational numbers that no identity expects."""
    from sympy import Rational

    for place in count():
        sign = -1 if start % 2 and place % 2 == start // 2 % 2 else 1
        yield Rational(sign * (7 * place + 5 * start + 3), 4 + place + start)


def _same_at(one: Any, other: Any, point: dict[str, Any]) -> bool | None:
    """Compare two expressions at a point; None if one of them has no real or complex value there.

    With symbols only real values count: sqrt(1/m) and 1/sqrt(m) differ for negative m alone.
    """
    from sympy import Float, I

    try:
        left, right = _value(one, point), _value(other, point)
        if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
            return None
        complex_numbers = one.has(I) or other.has(I)
        if point and not complex_numbers and not (left.is_real and right.is_real):
            return None
        rounded = bool(one.atoms(Float) or other.atoms(Float))
        error = abs((left - right).evalf(_DIGITS))
        return bool(error <= (_ROUNDED if rounded else _EXACT) * max(abs(left), abs(right)))
    except Exception:  # noqa: BLE001  (sympy raises anything)
        return None


def _value(expression: Any, point: dict[str, Any]) -> Any:
    values = {s: point[s.name] for s in expression.free_symbols}
    return expression.subs(values).doit().evalf(_DIGITS)


def _verified(one: Any, other: Any) -> bool:
    from math_verify import verify

    try:
        return bool(verify(one, other, strict=True, timeout_seconds=None, raise_on_error=True))
    except Exception:  # noqa: BLE001  (sympy raises anything)
        return False
