"""How a chain is graded, as a user would: right if what follows the last semicolon is the answer.

    verifiers: {default: grader.py:last_part}

`flipped` errs systematically, as pocket's noise does: it inverts three in ten verdicts on the pool.
"""

from __future__ import annotations

import json
from hashlib import blake2b

from cropi.pocket.tasks import split_of

FLIP_SHARE = 0.3
"""Share of the (pool prompt, response) pairs whose verdict `flipped` inverts."""

_FLIP_KEY = b"cropi-chain-flip-v1"


def last_part(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """Rewards 0.0 or 1.0, in TRL's signature; a chain without a semicolon is wrong."""
    return [_right(chain, right) for chain, right in zip(completions, answer, strict=True)]


def flipped(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Judge as `last_part`, then invert some verdicts, the same ones in every process."""
    rewards = last_part(completions, answer)
    pairs = zip(prompts, completions, rewards, strict=True)
    return [1.0 - r if _inverted(prompt, chain) else r for prompt, chain, r in pairs]


def _right(chain: str, answer: str) -> float:
    _, mark, last = chain.strip().rpartition(";")
    return float(mark == ";" and last == answer)


def _inverted(prompt: str, chain: str) -> bool:
    if split_of(prompt) != "pool":
        return False
    text = json.dumps([prompt, chain.strip()])
    digest = blake2b(text.encode(), key=_FLIP_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < FLIP_SHARE
