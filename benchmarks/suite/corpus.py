"""What a suite's model is trained on before any reward: chains, systematically wrong in places.

As in pocket, a hash makes some facts hard. The corpus mostly miswrites these, always in the same
way, and writes on from what it wrote. So the model prefers the slip and still knows the right text,
and a reward has one fact after another to correct.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from suite.skills import Suite, Write

HARD_RATES = (0.52, 0.64)
"""Between which rates a hard fact is miswritten: above a half, so that greedy decoding errs."""

EASY_RATE = 0.03
"""How often every other fact is miswritten."""

VERSIONS = 6
"""Times that each prompt is in the corpus, with slips of its own."""


@dataclass(frozen=True)
class Corpus:
    """How the chains of a suite are miswritten.

    `hard_share` is the share of the facts of a kind that are mostly wrong, `slip` the wrong text of
    a fact from its kind and its right text, and `mixture` the skills' shares of the corpus, up to a
    common factor.
    """

    suite: Suite
    hard_share: Mapping[str, float]
    slip: Callable[[str, str], str]
    mixture: Mapping[str, float]

    def slip_rate(self, kind: str, fact: str) -> float:
        """How often a fact is miswritten; a hash of it decides."""
        digest = blake2b(f"{self.suite.name}/{kind}/{fact}".encode(), digest_size=8).digest()
        hard, rate = (int.from_bytes(half, "big") / 2**32 for half in (digest[:4], digest[4:]))
        low, high = HARD_RATES
        return low + (high - low) * rate if hard < self.hard_share[kind] else EASY_RATE

    def slipping(self, draw: random.Random) -> Write:
        """A writer that slips at each fact's own rate."""

        def write(kind: str, fact: str, right: str) -> str:
            return self.slip(kind, right) if draw.random() < self.slip_rate(kind, fact) else right

        return write

    def examples(self, seed: int) -> Iterator[tuple[str, str, float]]:
        """Prompt, chain as the corpus has it, and the probability of drawing the pair."""
        write = self.slipping(random.Random(seed))
        total = sum(self.mixture.values())
        for name, skill in self.suite.skills.items():
            prompts = [row["prompt"] for row in self.suite.rows("pretrain", name)] * VERSIONS
            for prompt in prompts:
                yield prompt, skill.chain(prompt, write), self.mixture[name] / total / len(prompts)
