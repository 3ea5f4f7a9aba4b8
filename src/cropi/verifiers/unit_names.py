"""Units and counted things after a number, so that 12 hours are not 12 minutes."""

from __future__ import annotations

import re
from functools import lru_cache

_SYNONYMS = {
    "m": "metre meter", "cm": "centimetre centimeter", "mm": "millimetre millimeter",
    "km": "kilometre kilometer", "g": "gram gramme gm", "kg": "kilogram kilo", "mg": "milligram",
    "s": "second sec", "min": "minute", "h": "hour hr", "day": "d", "week": "wk", "yr": "year",
    "mo": "month", "l": "litre liter", "ml": "millilitre milliliter", "ft": "foot feet",
    "in": "inch inches", "yd": "yard", "mi": "mile", "lb": "pound lbs", "oz": "ounce",
    "$": "dollar usd buck", "€": "euro eur", "£": "gbp", "¥": "yen jpy yuan rmb",
    "₹": "rupee inr rs", "cent": "¢ c", "°": "degree deg", "gal": "gallon",
    "people": "person", "child": "children", "man": "men", "woman": "women", "j": "joule",
    "n": "newton", "w": "watt", "v": "volt", "a": "ampere amp", "hz": "hertz", "pa": "pascal",
    "k": "kelvin", "mol": "mole", "ms": "millisecond",
    "ω": "ohm \\omega", "kj": "kilojoule", "kw": "kilowatt", "kn": "kilonewton",
    "kpa": "kilopascal", "khz": "kilohertz", "cal": "calorie", "kcal": "kilocalorie",
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _SYNONYMS.items() for name in names.split()}
_NOT_UNITS = frozenset(
    """
    am pm a.m p.m o'clock oclock bc bce ad ce january february march april may june july august
    september october november december monday tuesday wednesday thursday friday saturday sunday
    and or but is are was were not no if then than more less pi sqrt sin cos tan log ln exp mod
    x y z i e because since so plus minus times divided to out nor base
    """.split()  # noqa: SIM905
)
_STOP = frozenset(
    """
    left in total of the a an each there altogether overall remaining away long old
    """.split()  # noqa: SIM905
)
_INVERSE = re.compile(r"([^\W\d_]+)\s*\^\s*\{?-(?:1|([23]))\}?")
_RATES = {"mph": ["mi", "/", "h"], "kph": ["km", "/", "h"], "kmh": ["km", "/", "h"]}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_WORD = re.compile(r"[^\W\d_]+(?:[.'’-][^\W\d_]+)*\.?|[$€£¥₹¢]|[/^]|\d+|°")


_LETTER_UNITS = {"m", "g", "s", "h", "l"}
_CLOCK_AND_DATE = {"月", "日", "年", "点", "時", "时", "分", "号", "월", "일", "년", "시"}
_CAPITAL_UNITS = {"J", "N", "W", "V"}
_KNOWN = {
    u
    for u in (
        *_SYNONYMS,
        *_CANONICAL,
        "st",
        "nd",
        "rd",
        "th",
        "sq",
        "cu",
        "mph",
        "rpm",
        "km",
        "kg",
        "kwh",
    )
    if len(u) > 1
}
_TEMPERATURE = re.compile(
    r"(?:\^\s*\{?\\circ\}?|°|\bdegrees?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?[CF](?:elsius|ahrenheit)?\b\s*\}?"
)
_WRAPPED = re.compile(r"\\(?:text|mathrm)\w*\s*\{([^{}]*)\}")


@lru_cache(maxsize=8192)
def canonical_unit(text: str) -> str | None:
    """Return a unit in one spelling (`square metres` as `m ^ 2`), "" for none, None if not a unit.

    Bare letters may be variables: outside `\\text{}` a unit is a known one, or a word of three
    letters or more after a space.
    """
    text = _TEMPERATURE.sub(_scale, text)
    text = text.replace("\\Omega", "ohm")
    if not _is_plain_unit(_WRAPPED.sub(" ", text)):
        return None
    text = _WRAPPED.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|°", " degree ", text)
    text = re.sub(r"\^\s*\{(\d)\}", r"^\1", text)
    text = re.sub(r"\\[, ;!]|[{}~]|(?<=\w)\s*\.\s*$", " ", text)
    text = _INVERSE.sub(r"/\1\2", text)
    words = _WORD.findall(text)
    if re.sub(r"[\s()\[\],·⋅*]|\\cdot", "", _WORD.sub("", text)) or len(words) > 9:
        return None
    return _joined([w.casefold().rstrip(".") for w in words])


def _scale(match: re.Match[str]) -> str:
    """Return the name of a temperature's scale, without the wrapper that the match has opened."""
    closes = "}" if match[0].endswith("}") and "{" not in match[0] else ""
    return f" {'celsius' if 'C' in match[0] else 'fahrenheit'}{closes}"


def _is_plain_unit(text: str) -> bool:
    """Whether the words of a text outside wrappers can be units, not variables."""
    for match in re.finditer(r"(\s?)(\\?[^\W\d_]+)", text):
        space, word = match[1] or text[: match.start()].rstrip(" ")[-1:] in ("/", "."), match[2]
        if not word.isascii() and word.lower() == word.upper() and word not in _CLOCK_AND_DATE:
            continue
        if word.startswith("\\") or word.casefold() in _KNOWN or (space and word in _CAPITAL_UNITS):
            continue
        if not space or (len(word) < 3 and word.casefold() not in _LETTER_UNITS | _STOP):
            return False
    return True


def _joined(words: list[str]) -> str | None:
    """Return canonical words in one string; None if one of them cannot be a unit."""
    units: list[str] = []
    power: list[str] = []
    for name in words:
        if name in _NOT_UNITS or (name.isdigit() and (not units or units[-1] != "^")):
            return None
        if name in _POWERS:
            power = ["^", _POWERS[name]]
        elif name in _RATES:
            units += _RATES[name]
        elif name not in _STOP:
            units += ["/" if name == "per" else _singular(name), *power]
            power = []
    return " ".join(units)


def _singular(name: str) -> str:
    if name in _CANONICAL:
        return _CANONICAL[name]
    for ending, stem in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", "")):
        if name.endswith(ending) and len(name) > len(ending) + 1 and not name.endswith("ss"):
            name = name.removesuffix(ending) + stem
            break
    return _CANONICAL.get(name, name)


_FREQUENCY = re.compile(r" / (?:day|week|mo|yr|people|child|student|trip)$")


def same_unit(one: str, other: str) -> bool:
    """Whether two canonical units agree: one is missing, or its words are among the other's."""
    if not one or not other or one == other:
        return True
    # 18 dollars per day are 18 dollars, but metres per second are not metres.
    bare = [_FREQUENCY.sub("", unit) for unit in (one, other)]
    if bare[0] == bare[1] and bare[0] in (one, other):
        return True
    first, second = set(one.split()), set(other.split())
    if {"/", "^"} & (first ^ second):
        return False
    return first <= second or second <= first
