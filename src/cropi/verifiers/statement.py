"""The statement of a response: the part in which it says what its answer is.

In this order: what follows the thoughts, the answer tag in it, the last box, a last line with
`####` (which ends a worked solution), the last "answer is" or "answer:", an earlier line with
`####`, and otherwise all of it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cropi.verifiers.asserted import (
    asserted,
    is_cut_off,
    other_turns,
    own_turn,
    without_questions,
)
from cropi.verifiers.retraction import taken_back
from cropi.verifiers.tags import DEFAULT_TAGS, Tags

Form = Literal["tag", "box", "phrase", "####", "text"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[\w\\]))")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>\\?\w{1,40}))|\\.|[{}]", re.DOTALL)
LONGEST_BARE = 40
"""Characters between `\\boxed 12`, which has no braces, and the end of the text."""
LONGEST = 4000
"""Characters of a statement that is read: what the answer is stands in the last part of a text."""
_WORD_CHARACTERS = string.ascii_letters + string.digits + "\\{}$.,"
_DEEPEST = 3
"""Boxes within boxes."""
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;]|\\[,;()\[\] ]|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)
_MARKS = r"[*_#`\s]"
_PHRASE = re.compile(
    r"(?:(?i:\b(?:answers?|(?:correct|right|best)\s+(?:option|choice|letter|statement)s?|respuesta|réponse|reponse|antwort|lösung|resposta|risposta|odpowiedź)\b"
    r"(?:(?:(?!\bis\b)[^.\n:=!?]){0,60}?(?:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|es|est|"
    rf"ist|é|è|lautet)\b(?:{_MARKS}*[:：])?|{_MARKS}*[:：=]))|\bответ{_MARKS}*(?:[:：—–-]|равен)"
    rf"|(?:答案|答){_MARKS}*(?:应该是|应为|就是|是|为|為|[:：])+|(?:答え|正解|정답|답){_MARKS}*(?:は|은|[:：])|الإجابة(?:\s+\w+)?{_MARKS}*(?:هي|[:：])))"
)
_HASHES = re.compile(r"(?m)^.*?####[ \t]*([^\n]*)$")
_HEADING = re.compile(r"\d+[.):]\s+[^\W\d]|(?:step|part|case)\b", re.IGNORECASE)
_ABBREVIATION = r"(?<!\b[ap]\.m)(?<!\b[ap]m)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)"
_SENTENCE_END = re.compile(rf"{_ABBREVIATION}(?<!\bsq)(?<!\bapprox)[.!?](?=\s)|[。！？]")
_COMPARATIVE = r"(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower)"
_BOUND = re.compile(
    r"(?i)(?:\\text\w*\s*\{)?\s*(?:\w+ly\s+)?(?:at\s+(?:the\s+)?(?:very\s+)?(?:least|most)|up\s+to|over|under"
    rf"|above|below|between|(?:no\s+|any\s+)?(?:{_COMPARATIVE}|other)\s+than|not\b"
    r"|(?:divisible\s+by|congruent\s+to|proportional\s+to|coprime|relatively\s+prime)\b"
    r"|(?:any|some)(?:thing|\s+number)?\s+(?:but|except|above|below|other)"
    r"|(?:half|twice|double|triple)(?:\s+of)?\s+[*$\\(]*\d"
    r"|(?:the\s+|an?\s+)?(?:\w+\s+){0,2}(?:square|cube|fourth|root|reciprocal|opposite|inverse|logarithm|multiple"
    r"|divisor|factor|power|third|quarter|fraction|factorial|close|near|next)\s+(?:of|to)\s+[^=,]*\Z"
    rf"|[*$(]*-?[\d.,/]+[*$)]*\s+(?:(?:\w+\s+){{0,2}}(?:{_COMPARATIVE}\s+than|as\s+\w+\s+as)\b"
    r"|squared\b|cubed\b|factorial\b|halved\b|doubled\b))"
)
_CERTAIN = re.compile(
    r"(?i)^(?:(?:indeed|simply|therefore|thus|hence|then|clearly|exactly|precisely|obviously|certainly"
    r"|definitely|finally|actually|just|still|now|again|equal\s+to|given\s+by)\b:?,?\s+)+(?=\S)"
)
"""Adverbs between "the answer is" and what it is."""
_EQUALS = re.compile(r"\A\s*=\s*(?=[^=>\s])")
_FENCE = re.compile(r"(?m)^[ \t]*```[\w-]*[ \t]*$")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and the form in which it was made."""

    text: str
    form: Form

    @property
    def is_long(self) -> bool:
        """Whether it is too long to be read; it can still be the answer's text."""
        return len(self.text) > LONGEST + LONGEST // 2

    @property
    def is_bound(self) -> bool:
        """Whether it states a bound or a difference (`at least 9`, `9 more than x`), no value."""
        return self.form != "text" and _BOUND.match(self.text) is not None


def take_statement(response: str, tags: Tags = DEFAULT_TAGS) -> Statement | None:
    """Return the statement of a response; None if it ends in its thoughts, box or sentence."""
    exchange = _first_exchange(own_turn(response), tags)
    text = None if exchange is None else tags.after_thoughts(exchange)
    if text is None:
        return None
    tagged = tags.tagged(text)
    text = asserted(_FENCE.sub("", text if tagged is None else tagged)).strip()
    for form, take in _TAKERS:
        if (stated := take(text)) is not None:
            rest = _taken_back_phrase(text) if form == "phrase" else None
            if rest is not None:
                return Statement(rest, "text")
            return Statement(_EQUALS.sub("", stated), form)
        if form == "box" and _BOX.search(text):
            return None  # it was cut off within its box
    if tagged is not None:
        return Statement(_EQUALS.sub("", text), "tag")
    text = _last_part(text)
    if is_cut_off(text):
        return None
    text = without_questions(taken_back(text, 0) or text)
    return Statement(_EQUALS.sub("", text.strip()), "text")


def _last_part(text: str) -> str:
    """Return a text in prose, without the middle of a long one: `Yes` may be its first line."""
    if len(text) <= LONGEST:
        return text
    first, tail = text[: LONGEST // 4].partition("\n")[0], text[-LONGEST:]
    return f"{first}\n{tail.lstrip(_WORD_CHARACTERS).lstrip()}"


def _first_exchange(text: str, tags: Tags) -> str | None:
    """Return a text up to where it goes on in another's role after an answer.

    None if it goes on to ask and answer a question by itself: what it states is then not clear.
    """
    for end, is_role in other_turns(text):
        before = tags.after_thoughts(text[:end])
        if before is not None and any(take(before) is not None for _, take in _TAKERS):
            return text[:end] if is_role else None
    return text


def gold_statement(answer: str) -> str:
    """Return the statement of a row's answer: after `####`, in the last box, or all of it."""
    hashes = answer.strip().rpartition("####")
    if hashes[1]:
        return hashes[2].strip()
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed
    text = DEFAULT_TAGS.tagged(answer) or answer.strip()
    leading = re.match(r"(?i)[*_\s]*(?:the\s+)?(?:final\s+)?answer\b", text)
    return (leading and phrased(text)) or text


def last_boxed(text: str, depth: int = 0) -> str | None:
    """Return what the last complete \\boxed{...} holds, inner boxes opened; None without one.

    Boxes that only "and" or a comma separates are one statement.
    """
    boxes = _outer_boxes(text)
    if not boxes:
        return None
    statements = [text[slice(*boxes[-1].inside)]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = text[before.end : after.start]
        if not between.strip(" $\n") or not _BETWEEN_BOXES.fullmatch(between):
            break
        statements.append(text[slice(*before.inside)])
    if depth < _DEEPEST:
        statements = [last_boxed(s, depth + 1) or s for s in statements]
    return ", ".join(reversed(statements)).strip()


class _Box(NamedTuple):
    """Where a box starts and ends, and where what it holds does."""

    start: int
    inside: tuple[int, int]
    end: int


def _outer_boxes(text: str) -> list[_Box]:
    """Return the complete boxes that are within no other, in order."""
    boxes: list[_Box] = []
    opened: list[re.Match[str]] = []
    for match in _BOX_OR_BRACE.finditer(text):
        if match["bare"]:
            if len(text) < match.end() + LONGEST_BARE:
                boxes.append(_Box(match.start(), match.span("bare"), match.end()))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match)
        elif match[0] == "}" and opened and (opening := opened.pop())[0] != "{":
            while boxes and boxes[-1].start > opening.start():
                boxes.pop()
            boxes.append(_Box(opening.start(), (opening.end(), match.start()), match.end()))
    return boxes


def phrased(text: str) -> str | None:
    """Return what follows the last "answer is" or "answer:" in its sentence, or on the next line.

    None without such words, or if nothing follows them.
    """
    last = _last_phrase(text)
    return last and last[0]


def _taken_back_phrase(text: str) -> str | None:
    last = _last_phrase(text)
    assert last is not None
    return taken_back(text, last[1])


def _last_phrase(text: str) -> tuple[str, int] | None:
    """Return what the last phrase states, and where that starts."""
    for match in sorted(_PHRASE.finditer(text), key=lambda m: -m.end()):
        rest = text[match.end() : match.end() + LONGEST]
        rest = re.sub(r"^[*_`:：\s]+", "", rest)
        start = text.find(rest[:1], match.end()) if rest else match.end()
        display = re.match(
            r"(\$\$.+?\$\$|\\\[.+?\\\]|\\begin\{(\w+\*?)\}.+?\\end\{\2\})", rest, re.DOTALL
        )
        line = display.group(1) if display else rest.partition("\n")[0].strip()
        line = re.sub(r"\s*(?:です|である|でした|입니다|이다)[。.]?\s*$", "", line)
        line = _CERTAIN.sub("", first_sentence(line.partition("####")[2] or line), count=1)
        # The mark that closes "**Answer: 12**" was opened before the phrase.
        line = line.rstrip(".").removesuffix("**") if line.count("**") % 2 else line
        if re.match(r"(?i)(?:\w+ly\s+)?not\b", line):
            continue  # what it is comes after what it is not
        if line.strip("*_.$ "):
            return line, start + 1
    return None


def first_sentence(line: str) -> str:
    """Return the first sentence of a line."""
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip()


def _ending_in_hashes(text: str) -> str | None:
    """Return what follows `####` in the last line, if that line starts with it."""
    last = text.strip().rpartition("\n")[2].strip()
    stated = last.removeprefix("####").strip()
    if not last.startswith("####") or not stated or _HEADING.match(stated):
        return None
    return phrased(stated) or stated


def _hashed(text: str) -> str | None:
    """Return what follows the last `####`, unless that line is the heading of a section."""
    matches = list(_HASHES.finditer(text))
    if not matches:
        return None
    stated, last = matches[-1].group(1).strip(), matches[-1].end() >= len(text.rstrip())
    if not stated or _HEADING.match(stated) or not (last or re.match(r"[-+\d$\\.€£(]", stated)):
        return None
    return stated


_TAKERS: tuple[tuple[Form, Callable[[str], str | None]], ...] = (
    ("box", last_boxed),
    ("####", _ending_in_hashes),
    ("phrase", phrased),
    ("####", _hashed),
)
