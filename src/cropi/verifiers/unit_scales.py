"""Units that convert: 90 minutes are 1.5 hours, 75 cents are 0.75 dollars."""

from __future__ import annotations

import re
from fractions import Fraction

from cropi.verifiers.unit_names import canonical_unit

_DIMENSIONS: tuple[dict[str, Fraction | int], ...] = (
    {"ms": Fraction(1, 1000), "s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    {"mm": 1, "cm": 10, "m": 1000, "km": 1000000},
    {"in": 1, "ft": 12, "yd": 36, "mi": 63360},
    {"mg": 1, "g": 1000, "kg": 1000000},
    {"oz": 1, "lb": 16},
    {"ml": 1, "l": 1000},
    {"cent": 1, "$": 100},
    {"mo": 1, "yr": 12},
)
_SI: tuple[dict[str, Fraction | int], ...] = tuple(
    {unit: 1, f"k{unit}": 1000} for unit in ("j", "w", "n", "pa", "hz", "cal")
)
_SCALES = {
    unit: (number, Fraction(scale))
    for number, units in enumerate((*_DIMENSIONS, *_SI))
    for unit, scale in units.items()
}
_PART = re.compile(r"(\d+(?:\.\d+)?(?:\s+\d+/\d+)?|\d+/\d+)[\s-]*([^\W\d_]+)\.?")
_COMPOUND = re.compile(rf"{_PART.pattern}(?:\s*,?\s*(?:and\s+)?{_PART.pattern})+", re.IGNORECASE)


def scale_of(unit: str) -> tuple[str, Fraction] | None:
    """Return the dimension of a canonical unit and its size in it; None if it does not convert."""
    above, rate, below = unit.partition(" / ")
    if rate:
        scales = scale_of(above), scale_of(below)
        if scales[0] is None or scales[1] is None:
            return None
        return f"{scales[0][0]}/{scales[1][0]}", scales[0][1] / scales[1][1]
    name, _, power = unit.partition(" ^ ")
    if name not in _SCALES or (power and power not in "23"):
        return None
    number, scale = _SCALES[name]
    return f"{number}^{power or 1}", scale ** int(power or 1)


_LONGEST = 200


def compound(text: str) -> tuple[Fraction, str] | None:
    """Return the value and unit of `2 hours 30 minutes` or `5 ft 3 in`; None for another text.

    The value is in the last unit, each of which is smaller than the one before.
    """
    text = re.sub(r"^(\d+)\s*'\s*(\d+)\s*\"$", r"\1 ft \2 in", text)
    if len(text) > _LONGEST or not _COMPOUND.fullmatch(text):
        return None
    total, last, smallest = Fraction(0), None, ""
    for number, name in _PART.findall(text):
        unit = "in" if name == "in" else canonical_unit(f"\\text{{{name}}}") or ""
        scale = scale_of(unit)
        if scale is None or (last is not None and (scale[0] != last[0] or scale[1] >= last[1])):
            return None
        total += sum(map(Fraction, number.split())) * scale[1]
        last, smallest = scale, unit
    assert last is not None
    return total / last[1], smallest


def last_compound(text: str) -> str | None:
    """Return the last text of the form `2 hours 30 minutes`, unless another value follows."""
    compounds = [m for m in _COMPOUND.finditer(text) if compound(m[0]) is not None]
    if not compounds or re.match(r"\s*(?:,|or|nor)\s*\d", text[compounds[-1].end() :]):
        return None
    return compounds[-1][0]
