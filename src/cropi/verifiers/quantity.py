"""Numbers, exactly: what `2^{100}`, `2\\frac{3}{4}`, `3.2 \\times 10^5` and `12 cm^2` are.

Works on text that `notation.normalise` has been through, and evaluates what is a rational number;
anything else (a root, a constant, a variable, a number with a base) is not a quantity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt

from cropi.verifiers.number_words import leading_number, unscaled
from cropi.verifiers.unit_names import canonical_unit, same_unit
from cropi.verifiers.unit_scales import compound, scale_of

_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?([-/.])\d\d?\1\d{4}|\d{4}/\d\d?/\d\d?")
_LARGEST_BITS = 40_000
_SIGNIFICANT_DIGITS = 6

_PLAIN = (
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:[ '_]\d{3})+|\d+)(?:\.\d*)?|\.\d+"
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>(?:{_PLAIN})(?:[eE][-+]?\d+)?(?![\d.]))"
    r"|(?P<operator>\\frac|\\sqrt|\\cdot|\\times|\\div|[-+*/^(){}]))"
)
_WITH_UNIT = re.compile(
    r"(?P<number>.*?[\d)}.])(?:\s*(?P<percent>%))?(?P<unit>\s*(?:[^\W\d_]|[$€£¥₹¢]|\\text|\\Omega|\^\\circ|\^\{\\circ\}|°).*)?"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A rational number as written.

    `decimals` counts the digits after the point of a lone decimal (None for any other form), and
    `digits` its significant digits; `rounded` says that decimals took part.
    """

    value: Fraction
    decimals: int | None = None
    digits: int = 0
    percent: bool = False
    unit: str = ""

    def equals(self, other: Quantity) -> bool:
        """Whether both mean the same: units agree or are missing on one side, and so do values."""
        if not same_unit(self.unit, other.unit):
            return self._converts_to(other)
        if self.percent == other.percent:
            return self._close(other)
        percent, bare = (self, other) if self.percent else (other, self)
        if percent.scaled(Fraction(1, 100))._close(bare):
            return True
        # 35 is a usual way to write 35%, but 0.35 is not one to write 0.35%.
        return (abs(bare.value) >= 1 or bare.value == 0) and percent._close(bare)

    def _converts_to(self, other: Quantity) -> bool:
        """Whether the units differ, but measure the same, as 90 minutes and 1.5 hours do."""
        scales = scale_of(self.unit), scale_of(other.unit)
        if scales[0] is None or scales[1] is None or scales[0][0] != scales[1][0]:
            return False
        return self.value * scales[0][1] == other.value * scales[1][1]

    def scaled(self, factor: Fraction) -> Quantity:
        """Return the quantity without its percent sign, times a factor."""
        decimals = None if self.decimals is None else self.decimals + 2
        return Quantity(self.value * factor, decimals, self.digits)

    def _close(self, other: Quantity) -> bool:
        """Equal; or one is a decimal of six digits or more to which the other rounds."""
        if self.value == other.value:
            return True
        if 1 in (self.value.denominator, other.value.denominator):
            return self._noise(other)
        short, long = sorted((self, other), key=lambda q: (q.decimals is None, q.decimals))
        if short.decimals is None or short.decimals == long.decimals:
            return False
        step = Fraction(1, 10**short.decimals)
        error = abs(short.value - long.value)
        return self._noise(other) or (short.digits >= _SIGNIFICANT_DIGITS and error < step)

    def _noise(self, other: Quantity) -> bool:
        """Whether the difference is that of binary floating point (0.30000000000000004)."""
        if max(self.digits, other.digits) < 15:
            return False
        return abs(self.value - other.value) <= abs(self.value) * Fraction(1, 10**14)


@lru_cache(maxsize=65536)
def read_quantity(text: str) -> Quantity | None:
    """Return the number that a normalised text is, with its unit; None if it is not one."""
    text = text.strip()
    text = re.sub(r"^\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    text = re.sub(r"(?i)^(?:negative|minus)\s+", "-", text)
    sign = "-" if text.startswith("-") else ""
    text = sign + leading_number(text.removeprefix("-"))
    text = re.sub(r"^([\d,]+)_(?:10|\{10\})$", r"\1", text)
    if not any(c.isdigit() for c in text) or (text[0] in "([" and "," in text):
        return None
    if _DATE.fullmatch(text):
        return None
    text = unscaled(text)
    currency = re.fullmatch(r"([-+]?)\s*([$€£¥₹])\s*(.+)", text)
    if currency:
        text = f"{currency[1]}{currency[3]}"
    number = _read_number(text)
    if number is not None:
        return Quantity(*number, unit=currency[2] if currency else "")
    parts = compound(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip())
    if parts is not None:
        return Quantity(parts[0], unit=parts[1])
    match = _WITH_UNIT.fullmatch(text)
    if match is None or (number := _read_number(match["number"])) is None:
        return None
    unit = canonical_unit((match["unit"] or "").rstrip())
    if unit is None:
        return None
    return Quantity(
        *number, match["percent"] is not None, unit or (currency[2] if currency else "")
    )


def _read_number(text: str) -> tuple[Fraction, int | None, int] | None:
    """Return value, decimals and significant digits of a number without a unit."""
    if re.fullmatch(r"[-+]?\d{1,3}(?:\.\d{3}){2,}", text):  # 1.234.567
        text = text.replace(".", "")
    text = re.sub(r"(?<!\d)(\d{1,3}(?:\.\d{3})+),(\d{1,2})$", _with_point, text)  # 1.234,50
    tokens = _tokens(text)
    if tokens is None:
        return None
    try:
        value = _Evaluator(tokens).value()
    except (ValueError, ZeroDivisionError, IndexError, OverflowError, RecursionError):
        return None
    lone = re.fullmatch(r"\s*[-+]?([\d, '_]*\.\d*)\s*", text)
    if lone is None:
        return value, None, 0
    digits = re.sub(r"[, '_]", "", lone[1])
    return value, len(digits.partition(".")[2]), len(digits.replace(".", "").lstrip("0"))


def _with_point(match: re.Match[str]) -> str:
    return match[1].replace(".", "") + "." + match[2]


def _tokens(text: str) -> list[str] | None:
    """Return numbers and operators; None if the text holds anything else."""
    tokens, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        token = match[0].strip()
        tokens.append(re.sub(r"[, '_]", "", token) if match["number"] else token)
        place = match.end()
    return tokens


class _Evaluator:
    """Recursive descent over sums, products, powers, fractions, mixed numbers and exact roots."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._place = 0

    def value(self) -> Fraction:
        result = self._sum()
        if self._next():
            raise ValueError
        return result

    def _next(self) -> str:
        return self._tokens[self._place]

    def _take(self, *allowed: str) -> str:
        token = self._next()
        if allowed and token not in allowed:
            raise ValueError
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        total = self._product()
        while self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            total += sign * self._product()
        return total

    def _product(self) -> Fraction:
        start = self._place
        result = self._power()
        while (token := self._next()) not in ("", "+", "-", ")", "}"):
            if token in ("*", "\\cdot", "\\times"):
                self._take()
                result *= self._power()
            elif token in ("/", "\\div"):
                self._take()
                result /= self._power()
            elif self._is_mixed(start, result):
                sign = -1 if self._tokens[start] == "-" else 1
                result += sign * self._power_or_ratio()
            elif token in ("(", "\\frac") or self._tokens[self._place - 1] == ")":
                result *= self._power()
            else:
                raise ValueError
        return result

    def _is_mixed(self, start: int, result: Fraction) -> bool:
        """Whether a whole number is followed by a fraction: 2 3/4 or 2\\frac{3}{4}."""
        whole = self._tokens[start : self._place]
        if not re.fullmatch(r"[-+]?\d+", "".join(whole)) or result.denominator != 1:
            return False
        ratio = self._tokens[self._place : self._place + 3]
        return ratio[0] == "\\frac" or (len(ratio) == 3 and ratio[1] == "/" and ratio[0].isdigit())

    def _power_or_ratio(self) -> Fraction:
        value = self._power()
        if self._next() == "/":
            self._take()
            value /= self._power()
        return value

    def _power(self) -> Fraction:
        if self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            return sign * self._power()
        base = self._atom()
        if self._next() != "^":
            return base
        self._take()
        sign = -1 if self._next() == "-" and self._take() else 1
        exponent = sign * self._atom()
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) * size > _LARGEST_BITS:
            raise ValueError
        return base ** int(exponent)

    def _atom(self) -> Fraction:
        token = self._take()
        if token in ("(", "{"):
            value = self._sum()
            self._take(")" if token == "(" else "}")
            return value
        if token == "\\frac":
            return self._atom() / self._atom()
        if token == "\\sqrt":
            return _root(self._atom())
        if len(token) > 4000:
            raise ValueError
        mantissa, _, exponent = token.lower().partition("e")
        if exponent and abs(int(exponent)) > _LARGEST_BITS // 4:
            raise ValueError
        return Fraction(token.rstrip(".") if not exponent else f"{mantissa}e{exponent}")


def _root(value: Fraction) -> Fraction:
    """Return an exact square root. Raises ValueError without one."""
    if value < 0:
        raise ValueError
    root = Fraction(isqrt(value.numerator), isqrt(value.denominator))
    if root * root != value:
        raise ValueError
    return root
