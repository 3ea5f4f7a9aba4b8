"""Numbers in English words: `twelve` is 12, `two thirds` is 2/3, `3 million` is 3,000,000."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
""".split()  # noqa: SIM905
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
          "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}  # fmt: skip
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12}  # fmt: skip
_VALUES = {w: n for n, w in enumerate(_UNITS)} | {w: 20 + 10 * n for n, w in enumerate(_TENS)}
_NAME = "|".join((*_VALUES, *SCALES))
_RUN = re.compile(
    rf"(?i)\b(?:(?:a|an)\s+)?(?:{'|'.join(_VALUES)}|(?<=a\s)(?:{'|'.join(SCALES)}))"
    rf"(?:(?:\s+and\s+|[\s-]+)(?:{_NAME}))*(?:[\s-]+(?:{'|'.join(_PARTS)})s?)?\b"
)
_CONCLUSION = re.compile(
    r"(?i)(?:(?<=[.!?]\s)|(?<=\n))(?:so|thus|hence|therefore|altogether|in\s+total)\b[^.!?\n\d]*[.!?]?\s*\Z"
)
_AND_A_PART = re.compile(
    rf"(?i)(?:(?<=\d)|\b({'|'.join(_UNITS)}))\s+and\s+(a|{'|'.join(_UNITS[1:10])})[\s-]+"
    rf"({'|'.join(_PARTS)})s?\b"
    r"|(?<![\d.,/])(\d+)\s+and\s+([1-9]\d?/[1-9]\d?)(?=\s+[^\W\d]{3,})"
)
_AND_A_HALF = re.compile(
    r"(?i)\b(?:an?|one)\s+(minute|hour|day|week|month|year)\s+and\s+a\s+half\b"
)
_SCALED = re.compile(rf"(?i)(?<=\d)\s*\b({'|'.join(SCALES)})\b")
_LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_SCALED_MONEY = re.compile(
    r"([$€£]\s?\d[\d,.]*)([kKMB])(?![^\W_])"
    r"|(?<![\w.,])(\d[\d,.]*)([kKMB])(?=\s(?:dollar|euro)s?\b)"
)
_WITH_LETTER = re.compile(r"([-+]?\d[\d,.]*)([kKMB])")


def number_of(words: str) -> Fraction | None:
    """Return the number that words are; None if they are not a number."""
    parts = re.split(r"[\s-]+", words.casefold().strip())
    parts = [p for p in parts if p not in ("and", "a", "an")]
    share = _PARTS.get(parts[-1]) or _PARTS.get(parts[-1].removesuffix("s")) if parts else None
    if share is not None:
        count = _whole(parts[:-1]) if len(parts) > 1 else 1
        return None if count is None else Fraction(count, share)
    whole = _whole(parts)
    return None if whole is None else Fraction(whole)


def _whole(parts: list[str]) -> int | None:
    total, group = 0, 0
    for place, part in enumerate(parts):
        if part in _VALUES:
            before = _VALUES.get(parts[place - 1], 100) if place else 100
            if before < 20 or (before < 100 and _VALUES[part] > 9):
                return None  # "three four" is two numbers
            group += _VALUES[part]
        elif part == "hundred":
            group = max(group, 1) * 100
        elif part in SCALES:
            total, group = total + max(group, 1) * SCALES[part], 0
        else:
            return None
    return total + group if parts else None


def in_digits(text: str) -> str:
    """Return a text with numbers in words as digits or fractions."""
    return _RUN.sub(_digits, text)


def with_parts(text: str) -> str:
    """Return a text with `two and a half`, `2 and two thirds` or `2 and 1/2 cups` as `2 1/2`."""
    if " and " not in text:
        return text
    return _AND_A_PART.sub(_mixed, _AND_A_HALF.sub(r"1 1/2 \1s", text))


def _mixed(match: re.Match[str]) -> str:
    name, count, part, number, ratio = match.groups()
    if ratio is not None:
        return f"{number} {ratio}" if Fraction(ratio) < 1 else match[0]
    share = Fraction(_VALUES.get(count.casefold(), 1), _PARTS[part.casefold()])
    whole = "" if name is None else _VALUES[name.casefold()]
    return f"{whole} {share}" if share < 1 else match[0]


def lone_number(text: str) -> str:
    """Return a text with its only number in words as digits, if it or its conclusion has no digits.

    "One" alone is a pronoun more often than a number.
    """
    concluding = _CONCLUSION.search(text) if re.search(r"\d", text) else None
    start = concluding.start() if concluding is not None else 0
    rest = text[start:]
    numbers = [m[0] for m in _RUN.finditer(rest) if m[0].casefold() != "one"]
    alone = len(numbers) == 1 and not re.search(r"\d", rest)
    return text[:start] + in_digits(rest) if alone else text


def leading_number(text: str) -> str:
    """Return a text that starts with a number in words with digits there."""
    match = _RUN.match(text)
    return text if match is None else _digits(match) + text[match.end() :]


def _digits(match: re.Match[str]) -> str:
    number = number_of(match[0])
    return match[0] if number is None else str(number)


def unscaled(text: str) -> str:
    """Return a text in which the scale of a number is a factor: `3 million` as `3*1000000`."""
    text = _SCALED.sub(lambda m: f"*{SCALES[m[1].casefold()]}", text)
    return _SCALED_MONEY.sub(lambda m: f"{m[1] or m[3]}*{_LETTERS[m[2] or m[4]]}", text)


def with_scale(text: str) -> str:
    """Return `2.5M` as a product, of a text that is this alone: elsewhere M may be a variable."""
    scaled = _WITH_LETTER.fullmatch(text.strip())
    return text if scaled is None else f"{scaled[1]}*{_LETTERS[scaled[2]]}"
