"""How many prompts a run's sets have, and how long they are: counted from the data themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropi.config import RunConfig
from cropi.curriculum.run_context import Seeds
from cropi.prompts import encode_all, has_chat_template, load_prompt_sets
from cropi.schema import Prompt, fingerprint

ENCODED_PROMPTS = 500
"""Prompts of a set that are encoded for its mean length."""


@dataclass(frozen=True)
class SetCount:
    """Prompts of one set, and the mean and longest length of those that were encoded, in tokens."""

    prompts: int
    tokens: float
    longest: int


@dataclass(frozen=True)
class PromptCounts:
    """The sets of a run; `answer_tokens` is the mean length of what a warm-up imitates, and
    `content` identifies the prompts."""

    pool: SetCount
    validation: Mapping[str, SetCount]
    evaluated: Mapping[str, SetCount]
    answer_tokens: float = 0.0
    content: str = ""

    @property
    def longest(self) -> int:
        """The longest prompt that was seen, in tokens."""
        sets = (self.pool, *self.validation.values(), *self.evaluated.values())
        return max(each.longest for each in sets)


def count_prompts(config: RunConfig, tokenizer: Any, base: Path | None = None) -> PromptCounts:
    """Load a run's prompts, and count them.

    Prompts that a run leaves out as overlong or unreadable are still counted. Raises InputError
    where they cannot be loaded.
    """
    seed = Seeds(config.seed, config.data_seed).of("prompts")
    templated = has_chat_template(tokenizer)
    sets = load_prompt_sets(config.prompts, seed, base, templated=templated)

    def count(prompts: Sequence[Prompt]) -> SetCount:
        some = _spread(prompts)
        lengths = [
            len(ids) for ids in encode_all(tokenizer, some, config.prompts.chat_template_kwargs)
        ]
        return SetCount(len(prompts), float(np.mean(lengths)), max(lengths))

    return PromptCounts(
        pool=count(sets.pool),
        validation={name: count(prompts) for name, prompts in sets.validation.items()},
        evaluated={name: count(each) for name, each in (sets.test or sets.validation).items()},
        answer_tokens=_answer_tokens(config, tokenizer, sets.pool),
        content=fingerprint([[p.prompt_id for p in each] for each in sets.named().values()]),
    )


def _spread(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """At most ENCODED prompts, from the whole length of the list: sources stand one by one."""
    return prompts[:: -(-len(prompts) // ENCODED_PROMPTS)]


def _answer_tokens(config: RunConfig, tokenizer: Any, pool: Sequence[Prompt]) -> float:
    if not config.warmup.steps:
        return 0.0
    texts = [config.warmup.template.replace("{answer}", p.answer) for p in _spread(pool)]
    return float(np.mean([len(tokenizer(text)["input_ids"]) + 1 for text in texts]))
