"""What a statement is, read into parts: a number, a list, an interval, a matrix, an equation, ...

`read` takes a statement apart until only quantities, words and formulas are left; then
`equality.equal` compares the parts. Formulas are left to math-verify.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from cropi.verifiers.brackets import balanced, encloses, split
from cropi.verifiers.dates_and_times import canonical_moment
from cropi.verifiers.expressions import equal_constants
from cropi.verifiers.families import INTEGER, declared, renamed, with_member
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
from cropi.verifiers.notation import canonical_text, normalise
from cropi.verifiers.number_words import in_digits
from cropi.verifiers.quantity import Quantity, read_quantity
from cropi.verifiers.unit_names import canonical_unit
from cropi.verifiers.words import is_wordy

_ENVIRONMENT = re.compile(
    r"\\begin\{(\w+)\*?\}(?:\[[^\]]*\])?(?:\{[lcr|@{} ]*\})?(.*)\\end\{\1\*?\}", re.DOTALL
)
_MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array"}
_OTHER_TABLES = {"vmatrix", "Vmatrix", "cases", "aligned", "align"}
_CONDITION = re.compile(
    r"(?P<main>.+?),?(?:\s*\\text\s*\{\s*,?\s*(?:for|where|when|if|with)\b(?P<inside>[^{}]*)\}"
    r"|\s+(?:for|where|when|if)\s)"
    r"(?P<rest>.*)"
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z](?:_(?:\w|\{[^{}]*\}))?'*|\\[a-z]+|\\text\s*\{[^{}]*\}|[A-Za-z]\(\s*[a-z]\s*\)"
    r"|pO?H|pK_?[ab]|[A-Z]{2,4}|[A-Za-z]+'*(?:\^\{?-1\}?|_\w|_\{\w+\})?\([^()=]*\)|\\?\|[^|=]+\\?\|"
    r"|[A-Za-z]\([^()=]*\)(?:\s*[-+*]\s*[A-Za-z]\([^()=]*\))+"
    r"|\([a-z](?:\s*,\s*[a-z])+\)|[A-Z]'?\s*\\(?:cap|cup|setminus|times)\s*[A-Z]'?"
    r"|\\(?:vec|hat|bar|tilde|overrightarrow)\s*(?:\{\w+\}|\w)(?:_\w)?|[A-Z]\^(?:\{-1\}|[TcC])"
    r"|\\angle ?[A-Z]+|[A-Z][a-z]+|m\\angle ?[A-Z]+|\\over(?:line|rightarrow)\{[^{}]*\})"
)
_OPERATOR = re.compile(
    r"\\(?:lim|int|gcd|lcm|max|min|det|dim|deg|sup|inf|sum|prod|Pr|arg|operatorname|text)(?![a-zA-Z])"
    r"|\\frac\{d[^{}]*\}\{d[^{}]*\}"
)
_BASED = re.compile(r"[-+]?[\dA-F]+_\{?(?:\d+|\\text\{\w+\})\}?|0[xX][\da-fA-F]+|0[bB][01]+")
_EQUALS = re.compile(r"(?<![<>!\\])=")
_RELATION = re.compile(r"\\(?:leq|geq)(?![a-zA-Z])|<|>")
_AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![\w\\])(?:and|or)(?!\w)|[,;]"
    r"|\\(?:lor|land|vee|wedge)(?![a-zA-Z])"
)
_SETTING = re.compile(r"\s*(\S+)\s*\\in(?![a-zA-Z])\s*(.+)")
_BUILDER = re.compile(r"\\\{\s*(\w)\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)\s*(.+)\\\}")
_UNIT_AFTER = re.compile(
    r"(?P<main>.*[\w)}])"
    r"(?P<unit>(?:\s*\\text\s*\{[^{}]+\}|(?<=[\d)}])\s[A-Za-z]{2,})(?:\s*\^\s*\{?\d\}?)?)"
)
_TEXT_ALONE = re.compile(r"\\ldots|\d:\d|^\d{1,4}([-/.])\d\d?\1\d{1,4}$")
_POINTS = re.compile(r"[A-Z]{2,3}")
_EXCLUSION = re.compile(
    r"\w\s*\\neq\s*(?P<points>.+)"
    r"|(?:\w\s*\\in\s*)?\\mathbb\s*\{?R\}?\s*(?:\\setminus|\\backslash|-)\s*\\\{(?P<set>.+)\\\}"
)
_SIZE = re.compile(r"\|\s*([a-z])\s*(?:([-+])\s*([^|]+))?\|")
_AND_A_PART = re.compile(
    r"(-?\d+)\s*(?:\\text\s*\{\s*and\s*\}|and)\s*(\d+/\d+|\\frac\{\d+\}\{\d+\})"
)
_RUN = re.compile(r"-?\d+(?:\.\d+)?(?:\s-?\d+(?:\.\d+)?)+")
_TRANSPOSED = re.compile(r"(?<=[\])])\s*\^\s*(?:\{\s*)?(?:T|\\top|\\intercal)(?:\s*\})?\s*\Z")
_SIGNS = re.compile(r"\\(pm|mp)(?![a-zA-Z])\s*")


@lru_cache(maxsize=65536)
def read(text: str, depth: int = 0) -> Reading:
    """Return the reading of a statement."""
    text = normalise(text)
    if depth > 6 or not text:
        return Words(canonical_text(text))
    quantity = read_quantity(text)
    if quantity is not None:
        return quantity
    for reader in _READERS:
        reading = reader(text, depth + 1)
        if reading is not None:
            return reading
    return _formula(text)


def as_fraction(text: str) -> Reading | None:
    """Return the reading of 3,5 as 3.5 and of `4 and 2/3` as 4 2/3; None for another text.

    Both could also be two numbers, so this is for a statement whose answer is a fraction.
    """
    text = in_digits(normalise(text))
    if comma := re.fullmatch(r"([-+]?\d+),(\d{1,2}|\d{4,})", text):
        return read(f"{comma[1]}.{comma[2]}")
    mixed = _AND_A_PART.match(text)
    return read(f"{mixed[1]} {mixed[2]}{text[mixed.end() :]}") if mixed else None


def _special(text: str, _: int) -> Reading | None:
    """Texts, ratios, times, numbers with a base and series: compared as text alone."""
    plain = canonical_text(text)
    if plain in ("\\mathbbR", "\\mathbb{R}"):
        return Interval(Formula("-\\infty"), Formula("\\infty"), "()")
    if (
        _BASED.fullmatch(text)
        or canonical_moment(text) is not None
        or _TEXT_ALONE.search(plain)
        or _POINTS.fullmatch(text)
        or (re.fullmatch(r"\w", plain) and plain not in ("e", "i"))
    ):
        return Words(plain)
    return None if re.search(r"[\w\\]", plain) else Words(plain)


def _environment(text: str, depth: int) -> Reading | None:
    text = re.sub(
        r"^[(\[|]\s*(?=\\begin\{(?:array|matrix)\})|(?<=\{array\}|matrix\})\s*[)\]|]$", "", text
    )
    scaled = re.fullmatch(r"([^=]*?\S)\s*(?:\\cdot)?\s*(\\begin\{[pb]matrix\}.*)", text, re.DOTALL)
    factor = read_quantity(scaled[1]) if scaled else None
    if scaled is not None and factor is not None:
        return _scaled(factor, read(scaled[2], depth))
    match = _ENVIRONMENT.fullmatch(re.sub(r"^\\\{\s*(?=\\begin)", "", text).strip())
    if match is None or "\\begin" in match[2] or match[1] not in _MATRICES | _OTHER_TABLES:
        named = _NAME.fullmatch(text.partition("=")[0].strip()) is not None
        return Words(canonical_text(text)) if "\\begin" in text and not named else None
    rows = [r for r in re.split(r"\\\\(?:\[[^\]]*\])?|\\hline", match[2]) if r.strip()]
    if match[1] in ("aligned", "align"):
        rows = [row.replace("&", "").strip() for row in rows]
        if len(rows) > 1 and all(row.startswith("=") for row in rows[1:]):
            return read(" ".join(rows), depth)
    rows = [re.sub(r"\\text\s*\{\s*(?:if|for|when)\s*\}", "", row) for row in rows]
    cells = tuple(tuple(read(c.strip(" ,"), depth) for c in row.split("&")) for row in rows)
    if all(len(row) == 1 for row in cells) and match[1] in ("cases", "aligned", "align"):
        return Listing(tuple(row[0] for row in cells))
    kind = "matrix" if match[1] in _MATRICES else match[1]
    return Matrix(cells, "cases" if text.startswith("\\{") else kind)


def _scaled(factor: Quantity, matrix: Reading) -> Reading | None:
    """Return a matrix of numbers times a factor; None for others."""
    if not isinstance(matrix, Matrix):
        return None
    cells = [cell for row in matrix.rows for cell in row]
    if not all(isinstance(cell, Quantity) for cell in cells):
        return None
    rows = tuple(
        tuple(Quantity(c.value * factor.value) for c in row if isinstance(c, Quantity))
        for row in matrix.rows
    )
    return Matrix(rows, matrix.kind)


def _condition(text: str, depth: int) -> Reading | None:
    if (member := with_member(text)) is not None:
        return Conditioned(read(renamed(*member, INTEGER), depth), INTEGER)
    main, modulo, rest = text.partition("\\pmod")
    name, _, value = main.rpartition("\\equiv")
    main = value if re.fullmatch(rf"[^a-zA-Z]+|{_NAME.pattern}", name.strip()) else main
    if modulo and "\\equiv" not in main and main.strip() and re.fullmatch(r"\{\w+\}", rest):
        return Conditioned(read(main, depth), canonical_text(modulo + rest))
    match = None if "\\begin" in text else _CONDITION.fullmatch(text)
    if match is not None and "otherwise" in match["rest"]:
        return Words(canonical_text(text))
    if match is None or is_wordy(match["main"]) or not match["main"].strip():
        return None
    condition = f"{match['inside'] or ''} {match['rest']}"
    if (parameter := declared(condition)) is not None:
        return Conditioned(read(renamed(match["main"], *parameter), depth), parameter[1])
    return Conditioned(read(match["main"], depth), canonical_text(condition))


def _union(text: str, depth: int) -> Reading | None:
    parts = [] if "=" in text else re.split(r"\\cup(?![a-zA-Z])", text)
    return Union(tuple(read(p, depth) for p in parts)) if len(parts) > 1 else None


def _bracketed(text: str, depth: int) -> Reading | None:
    """Read (1, 2), [1, 3), \\{1, 2\\} and (1, 2)^T."""
    text = _TRANSPOSED.sub("", text.strip())
    builder = _BUILDER.fullmatch(text)
    if builder is not None:
        return read(builder[2], depth)
    if not encloses(text):
        return None
    opening = "\\{" if text.startswith("\\{") else text[0]
    closing = "\\}" if text.endswith("\\}") else text[-1]
    if opening not in ("(", "[", "{", "\\{") or closing not in (")", "]", "}", "\\}"):
        return None
    inside = text[len(opening) : -len(closing)]
    items = split(inside, re.compile(r"[,;]"))
    if items is None or (len(items) == 1 and opening != "\\{"):
        return None
    brackets = opening[-1] + closing[-1]
    if "{" in brackets and brackets != "{}":
        return None
    readings = [read(i, depth) for i in items]
    return Listing(_flat(readings) if brackets == "{}" else tuple(readings), brackets)


def _exclusion(text: str, depth: int) -> Reading | None:
    """Read x \\neq 2, and the real numbers without 2, as the intervals beside it."""
    match = _EXCLUSION.fullmatch(text)
    if match is None:
        return None
    points = split(match["points"] or match["set"], _AND)
    values = [re.sub(r"^\s*\w\s*(?:\\neq|=)\s*", "", p) for p in points or []]
    signed = [re.sub(r"^\\pm\s*", sign, v) for v in values if "\\pm" in v for sign in ("", "-")]
    values = signed + [v for v in values if "\\pm" not in v]
    numbers = [q for v in values if (q := read_quantity(v.strip())) is not None]
    if not numbers or len(numbers) < len(values):
        return None
    ends: list[Reading] = [Formula("-\\infty"), *sorted(numbers, key=lambda q: q.value)]
    ends.append(Formula("\\infty"))
    return Union(tuple(Interval(low, high, "()") for low, high in pairwise(ends)))


def _spaced(text: str, depth: int) -> Reading | None:
    """Read numbers with only spaces between them, whose order counts."""
    return (
        Listing(tuple(read(n, depth) for n in text.split()), " ") if _RUN.fullmatch(text) else None
    )


def _named_point(text: str, depth: int) -> Reading | None:
    """Read the point P(4, 7)."""
    match = re.fullmatch(r"([A-Z]'?)\s*(\(.*\d.*,.+\))", text)
    return Assignment(match[1], read(match[2], depth), text) if match else None


def _membership(text: str, depth: int) -> Reading | None:
    match = _SETTING.fullmatch(text)
    return read(match[2], depth) if match and _NAME.fullmatch(match[1]) else None


def _list(text: str, depth: int) -> Reading | None:
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    text = re.sub(r"^(?:either|both)\s", "", whole[1] if whole else text)
    items = split(text, _AND)
    if items is None or len(items) < 2:
        return None
    return Listing(_flat([read(i, depth) for i in items]))


def _inequality(text: str, depth: int) -> Reading | None:
    signs = _RELATION.findall(text)
    if not signs or len(signs) > 2 or "=" in text:
        return None
    sides = [s.strip() for s in _RELATION.split(text)]
    ups = {s for s in signs if s in ("<", "\\leq")}
    if not all(sides) or (ups and len(ups) < len(set(signs))):
        return None
    if not ups:
        sides, signs = sides[::-1], signs[::-1]
    strict = [s in "<>" for s in signs]
    if len(sides) == 3 and _NAME.fullmatch(sides[1]):
        brackets = ("(" if strict[0] else "[") + (")" if strict[1] else "]")
        return Interval(read(sides[0], depth), read(sides[2], depth), brackets, sides[1])
    size = _SIZE.fullmatch(sides[1])
    if len(sides) == 2 and size is not None:
        low, high = _around(size, sides[0], depth)
        below = Interval(Formula("-\\infty"), low, "()" if strict[0] else "(]")
        return Union((below, Interval(high, Formula("\\infty"), "()" if strict[0] else "[)")))
    size = _SIZE.fullmatch(sides[0])
    if len(sides) == 2 and size is not None:
        return Interval(*_around(size, sides[1], depth), "()" if strict[0] else "[]", size[1])
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        closing = ")" if strict[0] else "]"
        return Interval(Formula("-\\infty"), read(sides[1], depth), "(" + closing, sides[0])
    if len(sides) == 2 and _NAME.fullmatch(sides[1]):
        opening = "(" if strict[0] else "["
        return Interval(read(sides[0], depth), Formula("\\infty"), opening + ")", sides[1])
    return None


def _around(size: re.Match[str], distance: str, depth: int) -> tuple[Reading, Reading]:
    """Return the numbers at a distance from the centre, which is a in |x - a| and 0 in |x|."""
    if size[2] is None:
        return read(f"-{distance}", depth), read(distance, depth)
    centre = f"{'-' if size[2] == '+' else ''}({size[3]})"
    return read(f"{centre}-({distance})", depth), read(f"{centre}+({distance})", depth)


def _equation(text: str, depth: int) -> Reading | None:
    sides = split(text, _EQUALS) or []
    if len(sides) < 2 or ("\\begin" not in text and _RELATION.search(text)):
        return None
    named = _NAME.fullmatch(sides[0]) is not None or (
        is_wordy(sides[0]) and not re.search(r"\d", sides[0])
    )
    values = [read(s, depth) for s in (sides[1:] if named else sides)]
    if _OPERATOR.match(sides[0]) or (not named and _are_equal_constants(sides, values)):
        return values[-1]
    numbers = [v for v in values if isinstance(v, Quantity)]
    if len(values) > 1 and len(numbers) == len(values):
        if not all(v == w or v.equals(w) for v, w in pairwise(numbers)):
            return Words(canonical_text(text))
        return Assignment(sides[0], values[-1], text) if named else values[-1]
    ends_in_number = isinstance(values[-1], Quantity) and not re.search(r"\d", sides[0])
    if named and (len(sides) == 2 or ends_in_number or not is_wordy(" ".join(sides[1:]))):
        spoken = re.search(r"\b(?:is|are|be|:)\s+(\w(?:_\w+)?)$", sides[0])
        name = spoken[1] if spoken else sides[0]
        return Assignment(name, values[-1], f"{name}={sides[-1]}")
    return Equation(text) if len(sides) == 2 and not is_wordy(text) else Words(canonical_text(text))


def _are_equal_constants(sides: list[str], values: list[Reading]) -> bool:
    """Whether all sides are one number, as those of 5! = 120 are; two quantities are told apart."""
    if all(isinstance(v, Quantity) for v in values) or any(is_wordy(s) for s in sides):
        return False
    return all(equal_constants(one, other) for one, other in pairwise(sides))


def _signed_tuple(text: str, depth: int) -> Reading | None:
    """Read (\\pm 3, 2) as two points."""
    return _plus_minus(text, depth) if text[0] in "([" and encloses(text) else None


def _plus_minus(text: str, depth: int) -> Reading | None:
    """Read a \\pm b as two values, wherever its only \\pm stands; \\mp is its opposite."""
    if len(re.findall(r"\\pm(?![a-zA-Z])", text)) != 1 or not balanced(text):
        return None
    return Listing((read(_signed(text, "+-"), depth), read(_signed(text, "-+"), depth)))


def _signed(text: str, signs: str) -> str:
    """Return a text with the first sign for \\pm and the second for \\mp."""
    text = _SIGNS.sub(lambda m: signs[m[1] == "mp"], text)
    return re.sub(r"(^|[{(\[,])\s*\+", r"\1", text)


def _flat(items: list[Reading]) -> tuple[Reading, ...]:
    """Return items with those that are several, as \\pm 3 is, one by one."""
    several = [i.items if isinstance(i, Listing) and not i.brackets else (i,) for i in items]
    return tuple(item for each in several for item in each)


def _words(text: str, _: int) -> Reading | None:
    unit = _UNIT_AFTER.fullmatch(text)
    if unit is not None and not is_wordy(unit["main"]):
        name = canonical_unit(unit["unit"])
        if name is not None:
            return _formula(unit["main"], name)
    return Words(canonical_text(text)) if is_wordy(text) else None


def _formula(text: str, unit: str = "") -> Reading:
    trigonometric = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text)
    degrees = None if trigonometric else re.fullmatch(r"(.+?)\s*\^\s*\\circ", text)
    return Formula(degrees[1], unit or "°") if degrees else Formula(text, unit)


_READERS = (
    _environment,
    _special,
    _spaced,
    _condition,
    _exclusion,
    _union,
    _membership,
    _signed_tuple,
    _bracketed,
    _named_point,
    _list,
    _inequality,
    _equation,
    _plus_minus,
    _words,
)
