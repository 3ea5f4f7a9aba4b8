"""What the chain model is trained on before any reward: chains, systematically wrong in places.

As in pocket, a hash makes some facts hard. The corpus mostly miswrites these, always in the same
way, and writes on from what it wrote. So the model prefers the slip and still knows the right text,
and a reward has one fact after another to correct. Facts are shared by skills: a product that is
hard in `sum` is hard in `buy`.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from hashlib import blake2b

from chain.tasks import SKILLS, Write, rows

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

HARD_RATES = (0.52, 0.64)
"""Between which rates a hard fact is miswritten: above a half, so that greedy decoding errs."""

EASY_RATE = 0.03
"""How often every other fact is miswritten."""

VERSIONS = 6
"""Times that each prompt is in the corpus, with slips of its own."""


def slip_rate(kind: str, fact: str) -> float:
    """How often the corpus miswrites a fact; a hash of it decides."""
    digest = blake2b(f"chain/{kind}/{fact}".encode(), digest_size=8).digest()
    hard, rate = (int.from_bytes(half, "big") / 2**32 for half in (digest[:4], digest[4:]))
    low, high = HARD_RATES
    return low + (high - low) * rate if hard < HARD_SHARE[kind] else EASY_RATE


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


def slipping(draw: random.Random) -> Write:
    """A writer that slips at each fact's own rate."""

    def write(kind: str, fact: str, right: str) -> str:
        return slip(kind, right) if draw.random() < slip_rate(kind, fact) else right

    return write


def examples(seed: int) -> Iterator[tuple[str, str, float]]:
    """Prompt, chain as the corpus has it, and the probability of drawing the pair.

    Every skill has the same share of the corpus.
    """
    write = slipping(random.Random(seed))
    for skill in SKILLS.values():
        prompts = [row["prompt"] for row in rows("pretrain", skill.name)] * VERSIONS
        for prompt in prompts:
            yield prompt, skill.chain(prompt, write), 1 / len(SKILLS) / len(prompts)
