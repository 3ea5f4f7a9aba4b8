"""`math`: the response states the answer, as text or as mathematics.

The stages: take the statement out of the response (`statement`), bring both sides into one notation
(`notation`), compare as text, and compare as mathematics (`reading`, `equality`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.alternatives import alternatives
from cropi.verifiers.candidates import (
    last_candidate,
    names_only_denied,
    number_of_runs,
    read_candidate,
)
from cropi.verifiers.dates_and_times import canonical_moment
from cropi.verifiers.description import described
from cropi.verifiers.equality import equal, is_readable
from cropi.verifiers.expressions import equal_formulas, silence_math_verify
from cropi.verifiers.forms import Assignment, Interval, Listing, Matrix, Reading, Union, Words
from cropi.verifiers.notation import ascii_notation, canonical_text, normalise
from cropi.verifiers.number_words import lone_number
from cropi.verifiers.polarity import NEGATION, gives_up, is_denied, is_doubted
from cropi.verifiers.quantity import Quantity
from cropi.verifiers.reading import as_fraction, read
from cropi.verifiers.restatement import ways_to_say
from cropi.verifiers.statement import Statement, gold_statement, sentences_of, take_statement
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.unit_scales import last_compound
from cropi.verifiers.verdict import Decision
from cropi.verifiers.words import before_reason, is_said_to_be, is_wordy, says


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold answer as it is written, in its canonical text and as it is read."""

    written: str
    text: str
    reading: Reading


@plugin("verifier", "math")
class MathVerifier:
    """Compares what the response states with the prompt's answer."""

    def __init__(self, tags: Tags = DEFAULT_TAGS) -> None:
        self._tags = tags
        silence_math_verify()
        # The first parse compiles grammars; that must not count towards a response's deadline.
        equal_formulas("\\frac{x}{2}", "\\sqrt{x}")

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return 1.0 if the response states the prompt's answer, else 0.0.

        Raises ValueError if the prompt's answer cannot be read.
        """
        return float(self.decide(prompt, completion).right)

    def decide(self, prompt: Prompt, completion: str) -> Decision:
        """Return whether the response is right, and why. Raises ValueError as a call does."""
        golds = [read_gold(answer) for answer in alternatives(prompt)]
        statement = take_statement(completion, self._tags)
        if statement is None:
            return Decision(False, "no statement", "")
        ways = ways_to_say(statement)
        stages = [_stage(gold, each) for gold in golds for each in ways]
        stage = next((s for s in stages if s), None)
        last = "words" if all(isinstance(g.reading, Words) for g in golds) else "mathematics"
        return Decision(stage is not None, stage or last, statement.text)

    def read_as(self, prompt: Prompt) -> str:
        """Return what the answer is read as. Raises ValueError as a call does."""
        readings = [described(read_gold(answer).reading) for answer in alternatives(prompt)]
        return ", or ".join(readings)

    def check_answer(self, prompt: Prompt) -> None:
        """Raise ValueError if the prompt's answer cannot be read."""
        for answer in alternatives(prompt):
            read_gold(answer)


@lru_cache(maxsize=65536)
def read_gold(answer: str) -> Gold:
    """Return a gold answer. Raises ValueError if there is nothing in it to compare."""
    text = gold_statement(answer)
    if not is_readable(text):
        raise ValueError(
            f"math cannot read the answer {answer!r}: it has no number, word or symbol"
        )
    return Gold(text, canonical_text(text), read(text))


def _stage(gold: Gold, statement: Statement) -> str | None:
    """Return the stage that finds the statement right; None if none does."""
    if statement.is_long:
        return "text" if statement.text.split() == gold.written.split() else None
    if canonical_text(statement.text) == gold.text:
        return "text"
    if isinstance(gold.reading, Words):
        whole = statement.form in ("text", "tag")
        return "words" if says(statement.text, gold.text, whole) else None
    if statement.form == "text" and is_said_to_be(statement.text, gold.text):
        return "words"
    right = any(equal(gold.reading, stated) for stated in readings(statement, gold.reading))
    return "mathematics" if right else None


def readings(statement: Statement, gold: Reading) -> Iterator[Reading]:
    """Yield what a statement can be read as: all of it, else its last candidate in prose."""
    text = ascii_notation(statement.text)
    if isinstance(gold, Quantity) and statement.is_bound:
        return
    if statement.form == "code":
        yield read(text)
        return
    if not _is_prose(text):
        yield read(text)
        if isinstance(gold, Quantity) and gold.value.denominator > 1:
            yield from filter(None, (as_fraction(text),))
        return
    if isinstance(gold, Listing) and (bullets := _BULLETS.search(text)):
        yield read(", ".join(_BULLET.findall(bullets[0])))
        return
    last_line = text.strip().rpartition("\n")[2].strip()
    if _APART.search(text) and "\\begin" not in text and not _is_prose(last_line):
        text = last_line
    if canonical_moment(text) is not None:
        return
    reading = read(text)
    is_set = isinstance(gold, Listing | Interval | Union | Matrix)
    if statement.form == "text":
        if not isinstance(gold, Interval | Union) and names_only_denied(text):
            return
        if _opens_denied(text):
            reading = Words("")
    of_lines = statement.form == "text" and "\n" in text.strip() and "\\" not in text
    if not isinstance(reading, Words | Listing) and not of_lines:
        yield reading
        if statement.form == "phrase":
            yield read(before_reason(text))
        if not is_set:
            return
    if statement.form == "box":
        tail = re.fullmatch(
            r"(?i)(?:\\text\w*\s*\{)?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*\}?(.+?)\}?",
            text,
        )
        yield read(tail[1]) if tail else reading
        return
    if isinstance(reading, Listing) and (statement.form != "text" or isinstance(gold, Listing)):
        yield reading
    yield from _in_prose(text, statement.form, gold)


def _in_prose(text: str, form: str, gold: Reading) -> Iterator[Reading]:
    """Yield readings of the part of a prose statement that can hold the answer."""
    if form == "text" and gives_up(text):
        return
    if isinstance(gold, Quantity):
        text = lone_number(text)
    text = _INFINITY.sub(lambda m: ("-" if m[1] else "") + "\\infty", text)
    if form == "phrase":
        text = before_reason(text)
        yield read(text)
    together = last_compound(text)
    if (
        together is not None
        and _is_affirmed(text, text.find(together))
        and isinstance(gold, Quantity)
        and gold.unit
    ):
        yield read(together)
        return
    line = _last_valued(text.strip().splitlines()[-1]) if text.strip() else ""
    if isinstance(gold, Listing | Interval | Union | Matrix):
        yield from _listings_in(line.replace("**", ""), gold)
    if isinstance(gold, Listing):
        return
    if (
        form == "phrase"
        and (number_of_runs(text) > 1 or re.match(r"\w+ \S+$", text))
        and not _ends_in_value(text)
    ):
        return
    candidate = last_candidate(text)
    if candidate is not None:
        yield read_candidate(*candidate, getattr(gold, "unit", ""))


def _last_valued(line: str) -> str:
    """Return the last sentence of a line with a number or a formula in it, else the first one."""
    sentences = sentences_of(line)
    return next((s for s in reversed(sentences) if re.search(r"[\d\\<>]", s)), sentences[0])


def _opens_denied(text: str) -> bool:
    """Whether the only sentence of a text denies or doubts what it names first."""
    first = re.search(r"[$\d\\(\[{]|(?<![^\W_])[a-z]\s*[=<>]", text)
    if first is None or len(sentences_of(text)) > 1:
        return False
    return not _is_affirmed(text, first.start())


def _is_affirmed(text: str, place: int) -> bool:
    return not is_denied(text, place, place) and not is_doubted(text, place)


def _listings_in(line: str, gold: Listing | Interval | Union | Matrix) -> Iterator[Reading]:
    """Yield readings of the parts of a sentence that can hold a list, a tuple or an interval."""
    tail = _LEADING_TO.split(line)[-1]
    place = len(line) - len(tail)
    if place and not NEGATION.match(tail.strip()) and _is_affirmed(line, place):
        yield read(tail)
    if not isinstance(gold, Listing) or not gold.brackets:
        return
    tuples = _TUPLE.findall(line)
    affirmed = (
        not NEGATION.search(line) and _is_affirmed(line, line.find(tuples[0])) if tuples else False
    )
    if len(tuples) == 1 and affirmed:
        yield read(tuples[0])
    elif not tuples and (candidate := last_candidate(line)) is not None:
        reading = read(candidate[0])
        if isinstance(reading, Interval | Union | Assignment):
            yield reading


_APART = re.compile(r"\n\s*\n[^\n]*[\w*$][^\n]*\Z")
"""A last line after an empty one, which stands for itself."""
_BULLET = re.compile(r"(?m)^\s*[-*•]\s+(.+?)\s*$")
_BULLETS = re.compile(r"(?:^\s*[-*•]\s+[^\n]+(?:\n|\Z)){2,}\Z", re.MULTILINE)
_INFINITY = re.compile(r"(?i)(?:(negative\s+|minus\s+|-)|positive\s+|plus\s+|\+)?\binfinity\b")
_LEADING_TO = re.compile(
    r"(?i)(?:\b(?:is|are|be|equals?|get|obtain|it['’]s)\b|:)(?:\s+(?:therefore|thus|hence|then)\b)?"
    r"|^(?:hence|thus|so|therefore),?\s"
)
"""What comes before a list: `The roots are therefore 2 and 5`."""
_TUPLE = re.compile(r"[(\[][^()\[\]]+,[^()\[\]]+[)\]]")


def _ends_in_value(text: str) -> bool:
    return re.search(r"(?i)(?:\bis|\bare|\bequals|=|:)\s+\S+(?:\s+[^\W\d]+)?$", text) is not None


def _is_prose(text: str) -> bool:
    return "\n" in text.strip() or is_wordy(normalise(text))
