"""What the puzzles model is trained on before any reward: see `suite/corpus.py`."""

from __future__ import annotations

from puzzles.tasks import CLOSING, DIGITS, PUZZLES, STOPS
from suite.corpus import Corpus

HARD_SHARE: dict[str, float] = {
    "rest": 0.15,
    "part": 0.06,
    "cap": 0.10,
    "gate": 0.16,
    "order": 0.16,
    "lead": 0.22,
    "run": 0.18,
    "close": 0.12,
    "bits": 0.12,
}
"""Share of the facts of a kind that the corpus mostly gets wrong."""

RINGS: dict[str, str] = {
    "gate": "tf",
    "order": "<>",
    "lead": STOPS,
    "close": "".join(CLOSING.values()),
    "bits": "01",
}
"""The order of characters in which a slip is the next one; of digits otherwise."""

MIXTURE: dict[str, float] = dict.fromkeys(PUZZLES.skills, 1.0)
"""Relative frequency of each skill in the training batches."""


def slip(kind: str, right: str) -> str:
    """The wrong text of a fact, always the same: its last character is the next one of its ring."""
    ring = RINGS.get(kind, DIGITS)
    return right[:-1] + ring[(ring.index(right[-1]) + 1) % len(ring)]


CORPUS = Corpus(PUZZLES, HARD_SHARE, slip, MIXTURE)
