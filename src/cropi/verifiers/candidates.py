"""The last mathematical candidate of a text in prose: a formula, a bold span, a number."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice

from cropi.verifiers.forms import Formula, Reading, Words
from cropi.verifiers.number_words import unscaled
from cropi.verifiers.polarity import NEAR, is_denied, is_doubted
from cropi.verifiers.quantity import Quantity
from cropi.verifiers.reading import read
from cropi.verifiers.unit_names import canonical_unit, same_unit

_SPAN = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_MEMBERSHIP = re.compile(r"[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*\\mathbb.{1,5}")
_NUMBER = re.compile(r"\d|\\(?:frac|sqrt|pi|infty)")
_MATH_TOKEN = re.compile(
    r"[*_`]*(?:[-+(\[{$€£¥₹]|\\[$({\[])*(?:\d[\d,.:/'%¢]*|\\[A-Za-z]+|(?:pi|ln|log|sin|cos|tan|exp|sqrt)(?![A-Za-z])|[A-Za-z](?![A-Za-z])|[-+*/^_=<>(){}\[\]|!,.%$]|\\[%$,!;{}])+[*_`]*"
)


_DENIED = re.compile(r"(?:不是|ではなく|가\s*아니라)[\s*_$\\(]*$")
_SHARE = re.compile(r"(?i)(?<![\d.])(\d+)\s+(?P<of>in|out\s+of)\s+$")
_OUT_OF = re.compile(r"(?i)\d[*$)]*\s+of\s+(?:the|these|those|his|her|their)\s+[*$\\(]*$")
_SPAN_OF_TIME = re.compile(r"(?i)[*$\s]*(?:second|minute|hour|day|week|month|year)s?\b")
_LABEL = re.compile(
    r"(?i)\b(?:step|equation|eq\.|problem|question|case|example|figure|table|section|page|part|line"
    r"|exercise|lemma|theorem|method|solution|january|february|march|april|may|june|july|august"
    r"|september|october|november|december)\s*[(#]*$"
)
_CASELESS = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_GLUED = re.compile(
    rf"(?<=[A-Za-z]:)(?=[-\d$(])|(?<=[{_CASELESS}])(?=[-\d$\\])|(?<=[\d$])(?=[{_CASELESS}])"
)
_ENUMERATED = re.compile(
    r"(?i)\d[*$]*(?:\s*,\s*(?:and|or)?|\s+(?:[^\W\d]+\s+){0,2}?(?:and|or|to)|\s*[&–])\s*[*$\\]*$"
)
"""What comes before the last of several numbers (2, 3, and 5; 7 apples and 3), none of which is
the answer."""


_RESULTS = (
    r"(?:is|are|was|were|be|gives?|gets?|leaves?|left|makes?|yields?|becomes?|equals?|totals?|total"
    r"|have|has|had|remain\w*)\b"
)
_ADJUNCT = re.compile(
    r"(?i)\b(?:in|after|during|within|over|for|of\s+(?:those|these))\s+(?:(?:the|those|these|all|just"
    r"|only|first|last|next)\s+){0,2}[*$\\(]*$"
    rf"|\b(?:if|when|while|by|before|after|having|(?:(?:more|left)(?:\s+[^\W\d]+)?|enough|order)\s+to)\s+"
    rf"(?:(?!{_RESULTS})[^\W\d]+\s+){{1,5}}[*$\\(]*$"
    r"|,\s+(?:including|excluding)\s+(?:[^\W\d]+\s+){0,4}[*$\\(]*$|,\s+with\s+(?:only\s+|just\s+)?[*$\\(]*$"
    r"|(?<=[\w,)*$%]\s)(?:because|since|as)\s(?!such)(?:(?!\bequals?\b)[^.,;:=\n])*$"
)
_AFTER_RESULT = re.compile(
    r"(?i)\s*(?:(?!(?:and|but|so|or|then|plus|minus|times|gives|gets?|is|are|was|were|leaves?|leaving"
    r"|makes?|making|that|which|now|equals?)\b)[^\s.,;:!?=]+\s+)*[*$\\(]*"
)
"""Between a computation and a number that says what for: "= 5 hours to read 120 pages"."""
_MOST_AFTER = 4
_STRONG = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|makes?|total\s+of|takes?|needs?|earns?|gets?|holds?|costs?|pays?|has|have)"
    r"|[=:*])[\s*$\\(]*$"
)
_BOLD = re.compile(r"(?<![\w)}])\*\*|\*\*(?![\w({-])")
_REMARK = re.compile(r"\([^()$\\]*[A-Za-z]{2,}\s+[^()$\\]*\)")
_PARTS = re.compile(
    r"(?P<whole>\d[\d,]*(?:\.\d+)?)[*$)]*(?P<what>(?:\s+[^\W\d]+){1,6}[*]*)\s*(?P<mark>[:,(–-])"
    rf"\s*(?P<parts>(?:(?!{_RESULTS}|\bso\b)[^=\n])*)\Z"
)
_IN_TOTAL = re.compile(r"(?i)\b(?:total|altogether|overall|in\s+all)\b")
_MINUS = re.compile(r"(?i)(?<!\d\s)\b(?:negative|minus)\s+(?=\d)")


def last_candidate(text: str) -> tuple[str, str] | None:
    """Return the last formula or number of a text and the words that follow it; None without one.

    A formula between `$` or `\\(` counts as a whole, and so does a run of numbers and operators.
    Numbers of a remark in parentheses, or of a phrase such as "in 3 days", do not count.
    """
    text = _without_parts(_REMARK.sub(" ", _GLUED.sub(" ", text)))
    text = unscaled(_MINUS.sub("-", text))
    places = list(islice(_candidates(text), 2))
    if not places:
        return None
    start, end, content = places[0]
    content = _BOLD.sub("", content)
    if is_doubted(text, start):
        return None
    for computed, stop, result in islice(_candidates(text), 1, _MOST_AFTER):
        if "=" in result and "=" not in content and _AFTER_RESULT.fullmatch(text, stop, start):
            start, end, content = computed, stop, result
            break
    if "=" in content and re.search(r"\d.*=", content):
        content = _computation(content, _before(text, start))
    share = _SHARE.search(_before(text, start))
    if share is not None and (share["of"] != "in" or not _SPAN_OF_TIME.match(text, end)):
        return f"{share[1]}/{content}", ""
    if _ENUMERATED.search(_before(text, start)):
        return None
    if len(places) > 1 and "=" not in content and _ADJUNCT.search(_before(text, start)):
        before, stop, other = places[1]
        if not re.search(r"[.!?]\s|\n", text[stop:start]):
            strong = "=" in other or _STRONG.search(_before(text, before))
            return (other, text[stop:].partition("\n")[0]) if strong else None
    return content, text[end:].partition("\n")[0]


def _without_parts(text: str) -> str:
    """Return a text without the parts of its last number: `8 balls in total: 5 red and 3 blue`."""
    match = _PARTS.search(text, max(0, len(text) - NEAR))
    if match is None or (match["mark"] != ":" and not _IN_TOTAL.search(match["what"])):
        return text
    numbers = [Fraction(n) for n in re.findall(r"\d+(?:\.\d+)?", match["parts"].replace(",", ""))]
    whole = Fraction(match["whole"].replace(",", ""))
    return text[: match.end("what")] if len(numbers) > 1 and sum(numbers) == whole else text


def _computation(content: str, before: str) -> str:
    """Return a computation without currencies, or its result where words are on its left side."""
    content = re.sub(r"[$€£](?=[\d.])", "", content)
    partial = re.search(r"\w\s[-+*/×÷x]\s[$€£]?$", before)
    if partial or re.match(r"(?:[-+*/]|\\(?:times|cdot|div)(?![a-zA-Z]))\s", content):
        return content.rpartition("=")[2].strip()
    return content


def _candidates(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and content of formulas and runs that are not denied, the last first."""
    spans = [
        (m.start(), m.end(), _inside(m))
        for m in _SPAN.finditer(text)
        if (not _PROSE_WORD.search(_inside(m)) or "\\" in _inside(m))
        and not _MEMBERSHIP.fullmatch(_inside(m))
    ]
    starts = [start for start, _, _ in spans]
    runs = []
    for start, end in _runs(text):
        place = bisect_right(starts, start) - 1
        if place < 0 or start >= spans[place][1]:
            runs.append((start, end, text[start:end]))
    for start, end, content in sorted(spans + runs, reverse=True):
        if not _is_denied(text, start, end):
            yield start, end, content


def _before(text: str, place: int) -> str:
    return text[max(0, place - NEAR) : place]


def _is_denied(text: str, start: int, end: int) -> bool:
    before = _before(text, start)
    if _DENIED.search(before) or _LABEL.search(before) or _OUT_OF.search(before):
        return True
    inside = re.sub(r"\\[a-zA-Z]+", "", text[start:end])
    computed = re.search(r"\d.*=", inside) and not re.search(
        r"(?<![a-zA-Z])[a-z](?![a-zA-Z])", inside
    )
    return not computed and is_denied(text, start, end)


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
            if (result := _RESULT_WITH_UNIT.match(token[0])) is not None:
                _add(runs, text, place if start is None else start, place + result.end())
                start = end = None
                continue
            if mathy:
                start = place if start is None else start
                end = line.start() + token.end()
                if token[0][-1:] not in ",.;:!?" or _is_factorial(token[0], text[end:]):
                    continue
            number = _NUMBER_WITH_UNIT.match(bare)
            if start is not None and end is not None:
                unfinished = number is not None and text[end - 1] == "="
                _add(runs, text, start, place + number.end() if number and unfinished else end)
            elif number is not None:
                _add(runs, text, place, place + number.end())
            start = end = None
        if start is not None and end is not None:
            _add(runs, text, start, end)
    return runs


_NUMBER_WITH_UNIT = re.compile(r"[*_(\"'$€£\\-]*(\d[\d,.]*)(?=/?[^\W\d_]{2,}|[-–°])")
_RESULT_WITH_UNIT = re.compile(r"[-+*/×÷().,\d$€£x]*=[-$€£]?\d[\d,.]*(?=[A-Za-z]{1,8}[.,;:!?]*\Z)")
"""`240-40=200cm`"""


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


def names_only_denied(text: str) -> bool:
    """Whether a text names candidates, but none that it does not deny or doubt."""
    last = next(_candidates(text), None)
    return number_of_runs(text) > 0 if last is None else is_doubted(text, last[0])


def number_of_runs(text: str) -> int:
    """Return how many candidates a text holds."""
    return len(_runs(text))


_UNIT = re.compile(
    r"[*_$)]*(?!\s*(?:is|are|was|were)\b)(\s*(?:(?:square|cubic|sq|cu)\.?\s+)?(?:degrees?\s+(?=[CF]))?(?:[^\W\d_]+(?:\s*\^\s*\{?[23]\}?)?|\^\\circ)"
    r"(?:\s+per\s+[^\W\d_]+|\s*/\s*[^\W\d_]+)?)"
)


def read_candidate(candidate: str, following: str, gold_unit: str) -> Reading:
    """Return the reading of a candidate, with the unit after it if that is not the gold's."""
    reading = read(candidate)
    unit = _UNIT.match(following)
    if not gold_unit or unit is None or not isinstance(reading, Quantity | Formula) or reading.unit:
        return reading
    name = canonical_unit(f"\\text{{{unit[1]}}}")
    if name is None:
        return Words(candidate) if isinstance(reading, Quantity) else reading
    return reading if same_unit(name, gold_unit) else replace(reading, unit=name)
