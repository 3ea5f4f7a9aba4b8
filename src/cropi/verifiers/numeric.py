"""`numeric`: the number that the response states is the answer's, exactly or within rounding."""

from __future__ import annotations

import re
from functools import lru_cache

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.alternatives import alternatives
from cropi.verifiers.candidates import last_candidate, read_candidate
from cropi.verifiers.description import described
from cropi.verifiers.forms import Assignment, Conditioned, Formula, Reading, Words
from cropi.verifiers.notation import ascii_notation, canonical_text, normalise
from cropi.verifiers.number_words import lone_number, with_scale
from cropi.verifiers.polarity import gives_up
from cropi.verifiers.quantity import Quantity
from cropi.verifiers.reading import as_fraction, read
from cropi.verifiers.restatement import ways_to_say
from cropi.verifiers.statement import Statement, gold_statement, take_statement
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.verdict import Decision


@plugin("verifier", "numeric")
class NumericVerifier:
    """Compares the number that the response states with the prompt's answer."""

    def __init__(self, tags: Tags = DEFAULT_TAGS) -> None:
        self._tags = tags

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return 1.0 if the response states the answer's number, else 0.0.

        An answer that is not one number counts as stated only by the same text; `check_answer`
        refuses it before a run. Raises ValueError if the answer has no number at all.
        """
        return float(self.decide(prompt, completion).right)

    def decide(self, prompt: Prompt, completion: str) -> Decision:
        """Return whether the response is right, and why. Raises ValueError as a call does."""
        statement = take_statement(completion, self._tags)
        golds = [(answer, read_gold(answer)) for answer in alternatives(prompt)]
        if statement is None or statement.is_bound or statement.is_long:
            return Decision(False, "no statement", "")
        ways = ways_to_say(statement)
        stages = [_stage(answer, gold, each) for answer, gold in golds for each in ways]
        stage = next((s for s in stages if s), None)
        return Decision(stage is not None, stage or "number", statement.text)

    def read_as(self, prompt: Prompt) -> str:
        """Return what the answer is read as. Raises ValueError as a call does."""
        golds = [(answer, read_gold(answer)) for answer in alternatives(prompt)]
        return ", or ".join(f"text {a!r}" if g is None else described(g) for a, g in golds)

    def check_answer(self, prompt: Prompt) -> None:
        """Raise ValueError if the prompt's answer is not exactly one number."""
        for answer in alternatives(prompt):
            if read_gold(answer) is None:
                raise ValueError(
                    f"the answer {answer!r} holds several numbers or is not a plain number; use "
                    "math"
                )


def _stage(answer: str, gold: Quantity | None, statement: Statement) -> str | None:
    """Return the stage that finds the statement right; None if none does."""
    if gold is None:
        return "text" if canonical_text(answer) == canonical_text(statement.text) else None
    stated = number_in(statement.text, statement.form in ("box", "tag", "code"), gold.unit)
    if stated is None and gold.value.denominator > 1:
        stated = _number(as_fraction(statement.text))
    return "number" if stated is not None and gold.equals(stated) else None


@lru_cache(maxsize=65536)
def read_gold(answer: str) -> Quantity | None:
    """Return the answer's number; None if it holds digits but is not one number.

    Raises ValueError if it has no number.
    """
    text = gold_statement(answer)
    number = _number(read(text))
    if number is None and not re.search(r"\d", normalise(text)):
        raise ValueError(f"the answer {answer!r} has no number")
    return number


def number_in(text: str, whole: bool, unit: str = "") -> Quantity | None:
    """Return the number that a statement is, or else the last number in it.

    Of a statement that is a formula (`x^2`) nothing is taken out; `whole` says that the statement
    is all that its author marked as the answer.
    """
    text = lone_number(ascii_notation(text))
    reading = read(with_scale(text))
    number = _number(reading)
    if isinstance(reading, Formula) and "\n" not in text.strip():
        return None
    if number is not None or not isinstance(reading, Words) or (whole and _several(text)):
        return number if number is not None or whole else _last_number(text, unit)
    return _last_number(text, unit)


def _several(text: str) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) > 1


def _last_number(text: str, unit: str) -> Quantity | None:
    text = re.sub(r"(?<=\d)-(?=\d)(?!\S*\s?=)", "; ", text)
    candidate = None if gives_up(text) else last_candidate(text)
    return None if candidate is None else _number(read_candidate(*candidate, unit))


def _number(reading: Reading | None) -> Quantity | None:
    while isinstance(reading, Assignment | Conditioned):
        reading = reading.value if isinstance(reading, Assignment) else reading.main
    return reading if isinstance(reading, Quantity) else None
