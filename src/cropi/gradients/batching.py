"""Which prompts go through the model together, within a budget of tokens and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cropi.schema import Response, RolloutGroup

BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Padded tokens of a batch where nobody says otherwise: a CPU gains nothing from more."""


@dataclass(frozen=True)
class PreparedGroup:
    """One informative prompt, with its distinct responses.

    `index` is its place in the caller's list; `distinct` the different token sequences, in order
    of first appearance; `which[k]` the distinct sequence that usable response k is.
    """

    index: int
    prompt_ids: np.ndarray
    responses: list[Response]
    distinct: list[np.ndarray]
    which: list[int]
    temperature: float

    @property
    def shared_length(self) -> int:
        """Positions of the row that holds the prompt once and every distinct response."""
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.distinct)

    @property
    def row_lengths(self) -> list[int]:
        """Positions of the rows that hold one distinct response each."""
        return [len(self.prompt_ids) + len(ids) - 1 for ids in self.distinct]


def prepare(index: int, group: RolloutGroup) -> PreparedGroup:
    """Drop unusable responses and merge equal ones."""
    responses = group.usable
    seen: dict[bytes, int] = {}
    distinct: list[np.ndarray] = []
    which = []
    for response in responses:
        key = response.ids.tobytes()
        if key not in seen:
            seen[key] = len(distinct)
            distinct.append(response.ids)
        which.append(seen[key])
    return PreparedGroup(
        index, group.prompt_ids, responses, distinct, which, group.sampling.temperature
    )


@dataclass(frozen=True)
class Budget:
    """What one batch may hold: padded positions through the model, and padded logit rows.

    Logits are a vocabulary wide, so where it is large they fill memory long before positions do.
    """

    positions: int
    predictions: int

    def holds(self, load: Load) -> bool:
        """Whether a batch of this load fits."""
        return (
            load.length * load.rows <= self.positions
            and load.predictions * load.prompts <= self.predictions
        )


@dataclass(frozen=True)
class Load:
    """Size of a batch: its longest row, rows, prompts, and a prompt's most predictions."""

    length: int = 0
    rows: int = 0
    prompts: int = 0
    predictions: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            max(self.length, other.length),
            self.rows + other.rows,
            self.prompts + other.prompts,
            max(self.predictions, other.predictions),
        )


def load_of(group: PreparedGroup, share_prefix: bool) -> Load:
    """The load of one prompt. Responses that share the prompt share its last position's logits."""
    tokens = sum(len(ids) for ids in group.distinct)
    count = len(group.distinct)
    if share_prefix:
        return Load(group.shared_length, 1, 1, tokens - count + 1)
    return Load(max(group.row_lengths), count, 1, tokens)


def plan(
    groups: Sequence[PreparedGroup], budget: Budget, share_prefix: bool
) -> list[list[PreparedGroup]]:
    """Split prompts into batches of similar row lengths within a budget.

    Longest first, so that a budget that does not fit in memory fails at once and not after hours.
    A prompt that exceeds the budget by itself is a batch of its own.
    """
    loads = {g.index: load_of(g, share_prefix) for g in groups}
    ordered = sorted(
        groups, key=lambda g: (loads[g.index].length, loads[g.index].rows, g.index), reverse=True
    )
    batches: list[list[PreparedGroup]] = []
    total = Load()
    for group in ordered:
        grown = total + loads[group.index]
        if not batches or not budget.holds(grown):
            batches.append([])
            grown = loads[group.index]
        batches[-1].append(group)
        total = grown
    return batches
