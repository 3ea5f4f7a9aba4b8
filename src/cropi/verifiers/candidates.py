"""The last mathematical candidate of a text in prose: a formula, a bold span, a number."""

from __future__ import annotations

import re

from cropi.verifiers.forms import Reading, Words
from cropi.verifiers.quantity import Quantity
from cropi.verifiers.reading import read
from cropi.verifiers.unit_names import canonical_unit, same_unit

_SPAN = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_NUMBER = re.compile(r"\d|\\(?:frac|sqrt|pi|infty)")
_MATH_TOKEN = re.compile(
    r"[*_]*(?:[-+(\[{$€£¥₹]|\\[$({\[])*(?:\d[\d,.:/'%]*|\\[A-Za-z]+|[A-Za-z](?![A-Za-z])|[-+*/^_=<>(){}\[\]|!,.%$]|\\[%$,!;{}])+[*_]*"
)


_DENIED = re.compile(
    r"(?i)(?:\b(?:not|than|never|nor|exceeds?|(?:anything|everything|all|nothing)\s+(?:but|except))|n't(?:\s+be)?|\bnot\s+be)[\s*_$\\(]*$"
)


_SHARE = re.compile(r"(?i)(?<![\d.])(\d+)\s+(?:in|out\s+of)\s+$")
_LABEL = re.compile(
    r"(?i)\b(?:step|equation|eq\.|problem|question|case|example|figure|table|section|page|part|line"
    r"|exercise|lemma|theorem|method|solution|january|february|march|april|may|june|july|august"
    r"|september|october|november|december)\s*[(#]*$"
)
_CASELESS = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_GLUED = re.compile(rf"(?<=[{_CASELESS}])(?=[-\d$\\])|(?<=[\d$])(?=[{_CASELESS}])")
_ENUMERATED = re.compile(
    r"(?i)\d[*$]*(?:\s*,\s*(?:and|or)?|\s+(?:[^\W\d]+\s+){0,2}?(?:and|or|to)|\s*[&–])\s*[*$\\]*$"
)
"""What comes before the last of several numbers (2, 3, and 5; 7 apples and 3), none of which is
the answer."""


def last_candidate(text: str) -> tuple[str, str] | None:
    """Return the last formula or number of a text and the words that follow it; None without one.

    A formula between `$` or `\\(` counts as a whole, and so does a run of numbers and operators.
    """
    text = _GLUED.sub(" ", text)
    spans = [
        m for m in _SPAN.finditer(text) if not _PROSE_WORD.search(_inside(m)) or "\\" in _inside(m)
    ]
    spans = [m for m in spans if not _DENIED.search(text[: m.start()])]
    runs = [
        run
        for run in _runs(text)
        if not _DENIED.search(text[: run[0]]) and not _LABEL.search(text[: run[0]])
    ]
    last_span = spans[-1] if spans else None
    if last_span is not None and (not runs or runs[-1][0] < last_span.end()):
        if _ENUMERATED.search(text[: last_span.start()]):
            return None
        return _inside(last_span), text[last_span.end() :].partition("\n")[0]
    if not runs:
        return None
    start, end = runs[-1]
    share = _SHARE.search(text[:start])
    if share is not None:
        return f"{share[1]}/{text[start:end]}", ""
    if _ENUMERATED.search(text[:start]):
        return None
    return text[start:end], text[end:].partition("\n")[0]


def _inside(match: re.Match[str]) -> str:
    return next(g for g in match.groups() if g is not None).strip()


def _runs(text: str) -> list[tuple[int, int]]:
    """Return where the runs of mathematical tokens with a number in them start and end."""
    runs: list[tuple[int, int]] = []
    start = end = None
    for line in re.finditer(r"[^\n]+", text):
        start = None
        for token in re.finditer(r"\S+", line[0]):
            bare = token[0].rstrip(".,;:!?*_`)") if token[0][-1:] in ".,;:!?*_`)" else token[0]
            mathy = bool(_MATH_TOKEN.fullmatch(token[0])) and token[0] not in ("a", "A", "I")
            place = line.start() + token.start()
            if mathy:
                start = place if start is None else start
                end = line.start() + token.end()
                if token[0][-1:] not in ",.;:!?" or _is_factorial(token[0], text[end:]):
                    continue
            if start is not None and end is not None:
                _add(runs, text, start, end)
            elif number := re.match(r"[*_(\"'$€£\\-]*(\d[\d,.]*)(?=[^\W\d_]{2,}|[-–°])", bare):
                _add(runs, text, place, place + number.end())
            start = end = None
        if start is not None and end is not None:
            _add(runs, text, start, end)
    return runs


def _is_factorial(token: str, following: str) -> bool:
    return token[-1] == "!" and token[-2:-1].isalnum() and following.lstrip()[:1] in tuple("=+-*/")


def _add(runs: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    """Add a run if it holds a number, without the punctuation around it."""
    while end > start and text[end - 1] in " .,;:!?*_`":
        end -= 1
    while start < end and text[start] in " *_`,=":
        start += 1
    piece = text[start:end]
    if piece.endswith(")") and piece.count("(") < piece.count(")"):
        end -= 1
    if piece.startswith("(") and text[start:end].count("(") > text[start:end].count(")"):
        start += 1
    if _NUMBER.search(text[start:end]):
        runs.append((start, end))


def number_of_runs(text: str) -> int:
    """Return how many candidates a text holds."""
    return len(_runs(text))


_UNIT = re.compile(
    r"[*_$)]*(\s*(?:(?:square|cubic|sq|cu)\.?\s+)?(?:[^\W\d_]+|\^\\circ)"
    r"(?:\s+per\s+[^\W\d_]+|\s*/\s*[^\W\d_]+)?)"
)


def read_candidate(candidate: str, following: str, gold_unit: str) -> Reading:
    """Return the reading of a candidate; only words if the unit after it contradicts the gold's."""
    reading = read(candidate)
    unit = _UNIT.match(following)
    if not gold_unit or unit is None or not isinstance(reading, Quantity) or reading.unit:
        return reading
    name = canonical_unit(f"\\text{{{unit[1]}}}")
    return Words(candidate) if name is None or not same_unit(name, gold_unit) else reading
