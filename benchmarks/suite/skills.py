"""Skills, each a finite space of prompts with a right chain, and their rows in disjoint splits.

A chain is made of facts (a product, a carry, which of two letters is first), each written by a
`Write` function: the right one here, one that slips in `corpus.py`. So one skill fails in several
ways, and skills that use the same facts help each other whatever they look like.

Which split a prompt belongs to is decided by pocket's hash of its text: the same for every seed.
Needs nothing but the standard library and `cropi.pocket.tasks`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cropi.pocket.tasks import SPLIT_SHARES, split_of

MOST_PROMPTS = 8_000
"""Prompts that are drawn, once and for all, from a skill's space if it is larger."""

Write = Callable[[str, str, str], str]
"""Write one fact of a chain: from its kind, its name and its right text to the text written."""


def write_right(kind: str, fact: str, right: str) -> str:
    """Write every fact as it is."""
    return right


@dataclass(frozen=True)
class Skill:
    """Prompts of one kind, and how a chain is written for one of them."""

    name: str
    spell: Callable[[], Iterator[str]]
    chain: Callable[[str, Write], str]

    def prompts(self) -> list[str]:
        """All distinct prompts, at most `MOST_PROMPTS`, in a fixed random order."""
        every = list(dict.fromkeys(self.spell()))
        return random.Random(self.name).sample(every, min(len(every), MOST_PROMPTS))

    def solution(self, prompt: str) -> str:
        """The right chain."""
        return self.chain(prompt, write_right)


class Suite:
    """Named skills; the answer to a prompt is what follows the last `mark` of its right chain.

    A chain without a mark is an answer.
    """

    def __init__(self, name: str, mark: str, skills: Iterable[Skill]) -> None:
        self.name, self.mark = name, mark
        self.skills = {skill.name: skill for skill in skills}

    def rows(self, split: str, skill: str) -> list[dict[str, Any]]:
        """All prompts of a skill in a split of `SPLIT_SHARES`, as rows of a prompt file."""
        assert split in SPLIT_SHARES, split
        prompts = [p for p in self.skills[skill].prompts() if split_of(p) == split]
        return [
            {
                "prompt_id": f"{skill}-{prompt[:-1].replace(' ', '_')}",
                "prompt": prompt,
                "answer": self.skills[skill].solution(prompt).rpartition(self.mark)[2],
                "source": f"{self.name}/{skill}",
                "extra": {"skill": skill},
            }
            for prompt in prompts
        ]
