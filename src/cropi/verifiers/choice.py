"""`choice`: the letter of a multiple-choice answer, in the forms that models use."""

from __future__ import annotations

import re

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.answers import last_boxed, last_tagged

_LETTER = "[A-J]"
_GOLD = re.compile(r"\(?([A-Ja-j])\)?(?:[.:)]?$|[.:)]\s)")
# Tried in this order; of several matches of one pattern the last one counts.
_PATTERNS = (
    re.compile(
        rf"(?i:answer|choice|option)(?i:\s+is)?\s*[:=]?\s*[*_(\[]*({_LETTER})\b(?!['\u2019])"
    ),
    re.compile(rf"\(({_LETTER})\)"),
    re.compile(rf"(?m)^\s*[*_]*({_LETTER})[*_]*[.:)]?\s*$"),
    re.compile(rf"(?m)^\s*[*_]*({_LETTER})[*_]*[.:)]\s"),
    # `A` and `I` alone in a sentence are words, so they need one of the forms above.
    re.compile(r"(?<![\w'\u2019])([B-HJ])(?![\w'\u2019])"),
)


@plugin("verifier", "choice")
def verify(prompt: Prompt, completion: str) -> float:
    """Return 1.0 if the response chooses the answer's letter, else 0.0.

    Raises ValueError if the answer is not a letter from A to J.
    """
    gold = _GOLD.match(prompt.answer.strip())
    if gold is None:
        raise ValueError(f"the answer {prompt.answer!r} is not a letter from A to J")
    return float(_chosen(completion) == gold.group(1).upper())


def _chosen(text: str) -> str | None:
    """Return the letter that the response chooses, if any."""
    for stated in (last_boxed(text), last_tagged(text)):
        letter = _leading(stated) if stated is not None else None
        if letter is not None:
            return letter
    if len(text.strip()) <= 4 and (letter := _leading(text)) is not None:
        return letter
    for pattern in _PATTERNS:
        matches = pattern.findall(text)
        if matches:
            return str(matches[-1])
    return None


def _leading(text: str) -> str | None:
    """Return the letter that a stated answer begins with: `b`, `(C)`, `\\text{D}`, `B. Paris`."""
    cleaned = re.sub(r"\\text\w*\s*\{([^{}]*)\}", r"\1", text).strip().strip("*_$ ")
    match = _GOLD.match(cleaned)
    return match.group(1).upper() if match else None
