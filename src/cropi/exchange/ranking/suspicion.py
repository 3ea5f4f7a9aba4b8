"""Prompts whose answer may be wrong: all responses agree with each other, and not with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cropi.exchange.imports.logged import LoggedResponse
from cropi.exchange.ranking.prompt_history import PassRule, PromptHistory
from cropi.schema import Prompt
from cropi.verifiers.candidates import last_candidate
from cropi.verifiers.notation import canonical_text
from cropi.verifiers.statement import gold_statement, take_statement

FEWEST_AGREEING = 3
"""Responses that have to say the same; two may err alike by chance."""
_NUMBER = re.compile(r"[-+]?\d{1,30}(?:\.\d{1,30}|/\d{1,30})?")
LONGEST = 2_000
"""Last characters of a response that are read."""


@dataclass(frozen=True)
class Suspicion:
    """What all responses of an unsolved prompt say: another answer than the gold, or the same.

    `kind` is "answer" where they contradict the gold, and "reward" where they state it and were
    not rewarded: the verifier or a required format may be at fault.
    """

    kind: str
    stated: str
    responses: int


def find_suspicion(
    prompt: Prompt, history: PromptHistory, responses: Sequence[LoggedResponse], rule: PassRule
) -> Suspicion | None:
    """What is suspicious about a prompt; None if nothing is."""
    judged = [responses[m] for m in history.members if responses[m].status == "ok"]
    gold = gold_statement(prompt.answer) if prompt.answer else ""
    if not gold or len(judged) < FEWEST_AGREEING or rule.apply([r.reward for r in judged]).any():
        return None
    stated = _stated(judged[0].text)
    if stated is None:
        return None
    if any(not _same(stated, other) for other in (_stated(r.text) for r in judged[1:])):
        return None
    kind = "reward" if _same(stated, gold) else "answer"
    return Suspicion(kind, stated, len(judged))


def _stated(text: str) -> str | None:
    """The answer that a response states; None if it marks none and ends in no number."""
    statement = take_statement(text[-LONGEST:])
    if statement is None:
        return None
    if statement.form != "text":
        return statement.text.strip() or None
    candidate = last_candidate(statement.text)
    return candidate[0] if candidate else None


def _same(first: str, second: str | None) -> bool:
    """Whether two statements are the same text, or the same number."""
    if second is None:
        return False
    texts = canonical_text(first), canonical_text(second)
    if texts[0] == texts[1]:
        return True
    numbers = [_number(text) for text in texts]
    return numbers[0] is not None and numbers[0] == numbers[1]


def _number(text: str) -> Fraction | None:
    plain = text.replace(",", "").strip("$%. ")
    if not _NUMBER.fullmatch(plain):
        return None
    try:
        return Fraction(plain)
    except ZeroDivisionError:
        return None
