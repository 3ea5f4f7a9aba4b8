"""Answers in words, with or without numbers in them: `Paris`, `March 3`, `3:00 PM`."""

from __future__ import annotations

import re
from functools import lru_cache

from cropi.verifiers.notation import canonical_text, unwrapped
from cropi.verifiers.polarity import is_denied, is_doubted
from cropi.verifiers.statement import first_sentence

_FUNCTIONS = frozenset(
    """
    sin cos tan cot sec csc log ln exp sqrt max min mod arcsin arccos arctan sinh cosh tanh lim
    gcd lcm inf and or det
    """.split()  # noqa: SIM905
)
_SHORT = frozenset("it is so of we he to as at an no my be if".split())  # noqa: SIM905
_COMMAND = re.compile(r"\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+")
_TEXT = re.compile(r"\\text\w*\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]+")
_CLOSED = {"yes", "no", "true", "false", "even", "odd", "always", "never", "sometimes"}
_KIND = re.compile(r"(?i)\A(?:an?\s+)?(even|odd|true|false)\s+(?!and\b|or\b|if\b|but\b)[a-z]+\Z")
"""`an odd function` for odd."""
_REASON = re.compile(
    r"\s(?:because|since|as|for)\s|,\s*(?:which|who|because|since|so|as|not)\b|\s[-—–]\s(?![\d$\\]|[b-zB-HJ-Z](?![a-zA-Z]))|\s\((?=[^()\]$]*(?<![\\a-z])[^\W\d_]{2,})|;|:\s"
    r"|,?\s(?:rather\s+than|instead\s+of)\s"
)
_OPPOSITES = {"true": "false", "false": "true"}
_NOT_SO = re.compile(r"(?i)(?:\bnot\s+|(?<=[a-z])n['’]t\s+|\bun(?=true))(true|false)\b")
_SENTENCES = re.compile(r"(?<!\b[ap]\.m)(?<=[.!?])\s+(?=[A-Z])")
_DOUBT = re.compile(
    r"(?i)\b(?:not|never|cannot|neither|nor|if|whether|unlikely|doubt|maybe|perhaps|might|could|may"
    r"|unless|would|than)\b|n['’]t\b|\?\s*$|不|没|非"
)
_CONTRAST = re.compile(r",\s*(?:and\s+)?not\s+|,?\s(?:rather\s+than|instead\s+of)\s", re.IGNORECASE)
_CONSEQUENCE = re.compile(r"(?i)\b(?:so|thus|hence|therefore),?\s+(.+)")
_IS = re.compile(
    r"(?i)\b(?:is|are|was|were|be|becomes?|equals|it['’]s)\b:?\s+(?:(?:therefore|thus|hence)\s+)?|是|為|は"
)
MOST_PREDICATES = 8
"""Of one sentence, the last ones."""
_NAMING = re.compile(
    rf"{_IS.pattern}|\b(?:called|named|prints?|outputs?|returns?|shows?|reads?|displays?|at|on|by|get|obtain)\b:?\s+"
    r"|\b(?:ist|est|es|è|é|это)\b:?\s+"
)
_LEADING = re.compile(
    r"(?i)^(?:so|thus|hence|therefore|then|and|finally|it is|it's|that is|this is)\b[\s,:]*"
)


@lru_cache(maxsize=65536)
def is_wordy(text: str) -> bool:
    """Whether a normalised text holds words: not only formulas, function names and variables.

    A run of letters outside `\\text{}` is a word from three letters on (`ab` is a product), and
    every letter of a script without cases is.
    """
    inside = " ".join(_TEXT.findall(text))
    bare = _COMMAND.sub(" ", _TEXT.sub(" ", text))
    words = [w for w in _WORD.findall(bare) if w.casefold() not in _FUNCTIONS]
    if any(len(w) > 2 or (not w.isascii() and w.lower() == w.upper()) for w in words):
        return True
    if any(w.casefold() in _SHORT for w in words):
        return True
    if any(
        w.casefold() not in _FUNCTIONS | {"for", "if", "where", "when"}
        for w in _WORD.findall(inside)
    ):
        return True
    return bool(re.search(r"\d:\d\d|\b[ap]\.?m\b|\d\s*(?:st|nd|rd|th)\b", bare, re.IGNORECASE))


def says(statement: str, gold: str, whole: bool) -> bool:
    """Whether a statement says the gold words: as a whole, or before its reason or next sentence.

    `whole` marks a whole response, in which only its first or last line can be the statement.
    """
    return any(
        canonical_text(piece) == gold for piece in _pieces(statement, gold, whole) if piece.strip()
    )


def _pieces(statement: str, gold: str, whole: bool) -> list[str]:
    statement = re.sub(r"(?<=\d)\s:\s(?=\d)", ":", _TEXT.sub(r"\1", statement))
    if gold in _OPPOSITES:
        statement = re.sub(r"[^.!?\n]+", _without_denial, statement)
    lines = [line.strip() for line in statement.splitlines() if line.strip()]
    if not lines:
        return []
    value = statement.rpartition("=")[2]
    pieces = [statement, value] if any(c.isdigit() for c in value) else [statement]
    for line in dict.fromkeys(
        (lines[-1], lines[0]) if gold in _CLOSED else lines[-1:] if whole else lines[:1]
    ):
        line = re.sub(r"[*_]{2}", "", line)
        sentence = first_sentence(_LEADING.sub("", line))
        parts = [line, sentence, _REASON.split(sentence, maxsplit=1)[0]]
        if gold in _CLOSED:
            parts.append(re.split(r"[,.;:!—–(]|\s-\s", sentence, maxsplit=1)[0])
            if any(canonical_text(p) in _CLOSED for p in parts):
                return parts
            pieces += _CONSEQUENCE.findall(sentence)[-1:]
            predicates = _predicates(lines[-1], _NAMING)
            pieces += predicates
            pieces += [
                kind for p in (sentence, *predicates) for kind in _KIND.findall(unwrapped(p))
            ]
        pieces += parts
    pieces += re.findall(r"\*\*([^*\n]+)\*\*", lines[-1])[-1:]
    if gold not in _CLOSED:
        pieces += _predicates(lines[-1] if whole else lines[0], _NAMING)
    return pieces


def _without_denial(sentence: re.Match[str]) -> str:
    """Return a sentence with `not true` as `false`, if that is all that it decides."""
    if len(re.findall(r"(?i)(?:true|false)\b", sentence[0])) != 1:
        return sentence[0]
    return _NOT_SO.sub(lambda m: f" {_OPPOSITES[m[1].casefold()]}", sentence[0])


def is_said_to_be(text: str, gold: str) -> bool:
    """Whether the last sentence of a text says that its subject is the gold text."""
    lines = text.strip().splitlines()
    return bool(lines) and any(canonical_text(p) == gold for p in _predicates(lines[-1], _IS))


def _predicates(line: str, naming: re.Pattern[str]) -> list[str]:
    """Return what the last sentence of a line says its subject is, and the subject of "is the".

    A sentence that denies, doubts or asks says nothing.
    """
    sentences = [s for s in _SENTENCES.split(line.replace("*", "").strip()) if s.strip()]
    contrast = (
        re.search(r"(?i)\bnot\b.+?\bbut\s+(?:rather\s+)?(.+)$", sentences[-1])
        if sentences
        else None
    )
    if contrast is not None:
        return [contrast[1]]
    sentence = _CONTRAST.split(sentences[-1].strip(), maxsplit=1)[0] if sentences else ""
    if not sentence or _DOUBT.search(sentence):
        return []
    sentence = _LEADING.sub("", sentence)
    places = [m.end() for m in naming.finditer(sentence)][-MOST_PREDICATES:]
    places = [p for p in places if not is_denied(sentence, p, p) and not is_doubted(sentence, p)]
    subject = re.match(r"(.+?)\s+(?:is|was|has|had|wins|won)\s+the\b", sentence)
    rests = [sentence[p:] for p in places]
    rests += [_REASON.split(rest, maxsplit=1)[0] for rest in rests[-1:]]
    return rests + ([subject[1]] if subject else [])


def before_reason(text: str) -> str:
    """Return what a sentence says before its reason: `5` of `5 because 2 + 3 = 5`."""
    return _REASON.split(text, maxsplit=1)[0].strip()
