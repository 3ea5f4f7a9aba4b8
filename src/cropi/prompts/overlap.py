"""When two questions are the same: up to case, spaces, quotes, punctuation and ways to set maths.

`normalised` is the form in which questions are compared, and prompts that agree in it leave the
pool. `shared_phrases` finds what it cannot decide: eight words in a row of a test question.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PHRASE_WORDS = 8
"""Words in a row that two questions seldom share by chance."""
EXAMPLES = 3
"""Shared phrases that a note shows."""
COMMON_PHRASE = 10
"""A phrase in more questions of a set than this is an instruction, or 1% of a larger set."""

_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u2039\u203a", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00d7\u22c5\u00b7\u2217", "*"),
        "\u00f7": "/",
        "\u2044": "/",
    }
)
"""Characters for one and the same mark."""
_MATHS = re.compile(r"\\[()\[\]]|\$+|\\[,;:!]|\\(?:left|right|displaystyle|limits)(?![a-z])")
"""Delimiters and spacing of formulas."""
_TIMES = re.compile(r"\\(?:times|cdot|ast)(?![a-z])")
_SINGLE_QUOTED = re.compile(r"(?<!\w)'([^']*)'(?!\w)")
_APOSTROPHE = re.compile(r"(?<=[^\W\d_]{2})'(?=[^\W\d_])")
_AROUND_OPERATORS = re.compile(r"\s*([*/=<>^%|&~()\[\]{}]|[^\w\s\x00-\x7f])\s*")
# Between spaces it is an operator; after a space alone it is the sign of what follows.
_AROUND_SIGNS = re.compile(r"(?<=\S)\s+([-+])\s+(?=\S)|^([-+])\s+")
# A point before a digit belongs to a number, a comma before three digits too, a colon to a time,
# and an exclamation mark after a number, a bracket or a single letter is a factorial.
_PUNCTUATION = re.compile(
    r"\.(?!\d)|(?<!\d):|:(?!\d)|(?<!\d),|,(?!\d{3}(?!\d))|(?<![\d)\]])(?<!\W[^\W\d_])!"
    r"|[;?\"\u2026\u00bf\u00a1]"
)
# What Unicode's compatibility forms would turn into other numbers: 2 cubed into 23.
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207f]+")
_LOWERED = re.compile("[\u2080-\u208e]+")
_FRACTION = re.compile("(?=[\u00bc-\u00be\u2150-\u215e])")
_BRACED = re.compile(r"([\^_])\{(-?\w+)\}")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|#+|>)\s+(?=[^\W\d_]{2})")
_MARKDOWN = "*_#` "


def normalised(text: str) -> str:
    """Fold case, Unicode forms, spaces, quotes, punctuation, and delimiters of formulas.

    Signs, brackets, powers and what is inside a number stay, everywhere in the text. A text of
    punctuation alone stays as it is.
    """
    folded = _LOWERED.sub(r"_\g<0>", _RAISED.sub(r"^\g<0>", _BULLET.sub("", text)))
    folded = _FRACTION.sub(" ", folded)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).casefold())
    folded = _TIMES.sub("*", _MATHS.sub(" ", folded.translate(_SAME)))
    folded = _APOSTROPHE.sub("", _SINGLE_QUOTED.sub(r"\1", folded))
    folded = _PUNCTUATION.sub(" ", folded).strip(_MARKDOWN)
    folded = _AROUND_OPERATORS.sub(r"\1", _BRACED.sub(r"\1\2", folded))
    folded = _AROUND_SIGNS.sub(r"\1\2", " ".join(folded.split()))
    return folded or " ".join(text.split())


@dataclass(slots=True)
class SharedPhrase:
    """How many pool prompts share eight words in a row with a set, and the first of them.

    An example is the ids of the two prompts and their phrase.
    """

    prompts: int
    examples: list[tuple[str, str, str]]


def shared_phrases(pool: Mapping[str, str], other: Mapping[str, str]) -> SharedPhrase | None:
    """Count questions of `pool` that share a phrase with one of `other`; both by prompt id.

    A phrase counts unless many questions of either set have one of its halves: those are
    instructions around questions, which may be alike.
    """
    homes: dict[str, str] = {}
    for prompt_id, text in other.items():
        for phrase in word_runs(text, PHRASE_WORDS):
            homes.setdefault(phrase, prompt_id)
    halves = {half for phrase in homes for half in _halves(phrase)}
    common = _common(pool, halves) | _common(other, halves)
    questions = {p: i for p, i in homes.items() if not common.intersection(_halves(p))}
    hits: dict[str, str] = {}
    for prompt_id, text in pool.items():
        shared = [p for p in word_runs(text, PHRASE_WORDS) if p in questions]
        if shared:
            hits[prompt_id] = shared[0]
    if not hits:
        return None
    first = sorted(hits)[:EXAMPLES]
    return SharedPhrase(len(hits), [(i, questions[hits[i]], hits[i]) for i in first])


def _halves(phrase: str) -> tuple[str, str]:
    words = phrase.split()
    return " ".join(words[: PHRASE_WORDS // 2]), " ".join(words[PHRASE_WORDS // 2 :])


def _common(texts: Mapping[str, str], halves: set[str]) -> set[str]:
    """Those halves of phrases that more than a few of the texts have."""
    counts: Counter[str] = Counter()
    for text in texts.values():
        counts.update(halves.intersection(word_runs(text, PHRASE_WORDS // 2)))
    most = max(COMMON_PHRASE, len(texts) // 100)
    return {half for half, count in counts.items() if count > most}


def word_runs(text: str, length: int) -> Iterator[str]:
    """Every `length` words in a row of a text."""
    words = re.findall(r"\w+", text)
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])
