"""What the chain model is trained on before any reward: see `suite/corpus.py`.

Facts are shared by skills: a product that is hard in `sum` is hard in `buy`.
"""

from __future__ import annotations

import string

from chain.tasks import CHAIN
from suite.corpus import Corpus

HARD_SHARE: dict[str, float] = {
    "times": 0.10,
    "plus": 0.10,
    "carry": 0.40,
    "minus": 0.15,
    "semicolon": 0.25,
    "turn": 0.20,
    "larger": 0.10,
    "order": 0.08,
    "tally": 0.08,
    "shift": 0.10,
    "next": 0.08,
    "count": 0.20,
}
"""Share of the facts of a kind that the corpus mostly gets wrong."""


def slip(kind: str, right: str) -> str:
    """The wrong text of a fact, always the same: a lost carry, a comma, a next digit or letter."""
    if kind == "carry":
        return str(int(right) - 10)
    if kind == "semicolon":
        return ","
    if kind == "order":
        return ">" if right == "<" else "<"
    ring = string.digits if right[-1].isdigit() else string.ascii_lowercase
    return right[:-1] + ring[(ring.index(right[-1]) + 1) % len(ring)]


CORPUS = Corpus(CHAIN, HARD_SHARE, slip, mixture=dict.fromkeys(CHAIN.skills, 1.0))
