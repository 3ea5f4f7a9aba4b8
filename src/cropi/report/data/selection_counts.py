"""What was selected, stage by stage, and how values spread: pure functions over ids and arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.report.kit.charts import OTHER

SHOWN_SOURCES = 14
"""Sources that a figure has room for."""


@dataclass(frozen=True, slots=True)
class Novelty:
    """Of one stage's prompts: in the previous stage, in an earlier one only, never before."""

    again: int
    earlier: int
    fresh: int

    @property
    def total(self) -> int:
        """How many prompts the stage selected."""
        return self.again + self.earlier + self.fresh


def stage_novelty(selections: Sequence[Sequence[str]]) -> list[Novelty]:
    """Return for each stage how its prompts relate to the stages before it."""
    seen: set[str] = set()
    previous: set[str] = set()
    stages = []
    for chosen in map(set, selections):
        again = len(chosen & previous)
        earlier = len((chosen & seen) - previous)
        stages.append(Novelty(again, earlier, len(chosen) - again - earlier))
        seen |= chosen
        previous = chosen
    return stages


def count_sources(prompt_ids: Iterable[str], sources: Mapping[str, str]) -> Counter[str]:
    """Count prompts by source; "unknown" for ids the pool does not hold."""
    return Counter(sources.get(i, "unknown") for i in prompt_ids)


def largest_sources(counts: Iterable[Counter[str]], limit: int = 12) -> list[str]:
    """Return the sources that matter most over all the counts, each count weighing the same.

    Every further source is shown as OTHER, so that a hundred stay readable.
    """
    weight: dict[str, float] = {}
    for counter in counts:
        total = sum(counter.values()) or 1
        for name, n in counter.items():
            weight[name] = weight.get(name, 0.0) + n / total
    ranked = sorted(weight, key=lambda name: (-weight[name], name))
    return ranked if len(ranked) <= limit + 1 else ranked[:limit]


def fold_sources(counts: Counter[str], names: Sequence[str]) -> dict[str, int]:
    """Return the counts of `names`, and of everything else under OTHER if there is any."""
    named = {name: counts.get(name, 0) for name in names}
    rest = sum(counts.values()) - sum(named.values())
    return {**named, OTHER: rest} if rest else named


def histogram(rates: Iterable[float | None], bins: int) -> list[float]:
    """Return the share of prompts at each of `bins` equally spaced pass rates from 0 to 1."""
    measured = np.clip([r for r in rates if r is not None], 0.0, 1.0)
    if not len(measured):
        return [0.0] * bins
    places = np.rint(measured * (bins - 1)).astype(int)
    return [float(n) / len(measured) for n in np.bincount(places, minlength=bins)]


def split_by_source(
    prompt_ids: Sequence[str], values: NDArray[np.float32], sources: Mapping[str, str]
) -> dict[str, NDArray[np.float32]]:
    """Split values [P], aligned with `prompt_ids`, by the prompts' sources."""
    names = np.array([sources.get(i, "unknown") for i in prompt_ids], dtype=object)
    return {str(name): values[names == name] for name in sorted(set(names.tolist()))}
