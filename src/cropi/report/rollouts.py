"""What a rollout file says about its prompts: pass rates, who is informative, reward statuses.

The file is read in batches and without its texts, so that a pool of any size fits in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Kind = Literal["informative", "all right", "all wrong", "all the same", "too few judged"]
KINDS: tuple[Kind, ...] = (
    "informative",
    "all right",
    "all wrong",
    "all the same",
    "too few judged",
)

COLUMNS = ("prompt_id", "reward", "reward_status", "finish_reason", "response_ids")


@dataclass(slots=True)
class Group:
    """The usable responses of one prompt: how many, and what their rewards span."""

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    greatest: float = float("-inf")

    def add(self, reward: float) -> None:
        """Count one usable response."""
        self.count += 1
        self.total += reward
        self.least = min(self.least, reward)
        self.greatest = max(self.greatest, reward)

    @property
    def pass_rate(self) -> float | None:
        """The mean reward; None where no response was judged."""
        return self.total / self.count if self.count else None

    @property
    def kind(self) -> Kind:
        """Whether the group has a gradient, and if not, why (docs/method.md)."""
        if self.count < 2:
            return "too few judged"
        if self.greatest > self.least:
            return "informative"
        if self.least >= 1:
            return "all right"
        return "all wrong" if self.greatest <= 0 else "all the same"


@dataclass(slots=True)
class RolloutFacts:
    """The groups of a rollout file by prompt, and counts over all its responses."""

    groups: dict[str, Group] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    @property
    def responses(self) -> int:
        """How many responses the file holds."""
        return sum(self.statuses.values())

    @property
    def informative(self) -> int:
        """How many prompts have a gradient."""
        return sum(g.kind == "informative" for g in self.groups.values())


def rollout_facts(path: Path) -> RolloutFacts:
    """Read the facts of a rollout file."""
    facts = RolloutFacts()
    with pq.ParquetFile(path) as file:
        present = [c for c in COLUMNS if c in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=65536, columns=present):
            _add(facts, batch)
    return facts


def _add(facts: RolloutFacts, batch: pa.RecordBatch) -> None:
    lengths = _lengths(batch)
    statuses = _texts(batch, "reward_status", "ok")
    facts.statuses.update(statuses)
    facts.finishes.update(_texts(batch, "finish_reason", "stop"))
    facts.tokens += sum(lengths)
    ids, rewards = batch.column("prompt_id").to_pylist(), batch.column("reward").to_pylist()
    for prompt_id, reward, status, length in zip(ids, rewards, statuses, lengths, strict=True):
        group = facts.groups.setdefault(str(prompt_id), Group())
        if status == "ok" and length and reward is not None and reward == reward:
            group.add(float(reward))


def _lengths(batch: pa.RecordBatch) -> list[int]:
    if "response_ids" not in batch.schema.names:
        return [1] * batch.num_rows
    lengths: list[Any] = pc.list_value_length(batch.column("response_ids")).to_pylist()
    return [int(n or 0) for n in lengths]


def _texts(batch: pa.RecordBatch, name: str, default: str) -> list[str]:
    if name not in batch.schema.names:
        return [default] * batch.num_rows
    return [str(v) for v in batch.column(name).to_pylist()]
