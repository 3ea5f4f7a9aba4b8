"""What was selected, stage by stage, and how influence is spread: pure functions over tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OTHER = "other"


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


@dataclass(frozen=True, slots=True)
class Box:
    """The five numbers of a box plot; whiskers at the 5th and 95th percentile."""

    low: float
    q1: float
    median: float
    q3: float
    high: float
    count: int


def novelty(selections: Sequence[Sequence[str]]) -> list[Novelty]:
    """Return for each stage how its prompts relate to the stages before it."""
    seen: set[str] = set()
    previous: set[str] = set()
    found = []
    for chosen in map(set, selections):
        again = len(chosen & previous)
        earlier = len((chosen & seen) - previous)
        found.append(Novelty(again, earlier, len(chosen) - again - earlier))
        seen |= chosen
        previous = chosen
    return found


def count_sources(prompt_ids: Iterable[str], sources: Mapping[str, str]) -> Counter[str]:
    """Count prompts by source; "unknown" for ids the pool does not hold."""
    return Counter(sources.get(i, "unknown") for i in prompt_ids)


def leading(counts: Iterable[Counter[str]], limit: int = 12) -> list[str]:
    """Return the sources that matter most over all the counts, each count weighing the same.

    Every further source is shown as OTHER, so that a hundred stay readable.
    """
    weight: dict[str, float] = {}
    for one in counts:
        total = sum(one.values()) or 1
        for name, n in one.items():
            weight[name] = weight.get(name, 0.0) + n / total
    ranked = sorted(weight, key=lambda name: (-weight[name], name))
    return ranked if len(ranked) <= limit + 1 else ranked[:limit]


def folded(counts: Counter[str], names: Sequence[str]) -> dict[str, int]:
    """Return the counts of `names`, and of everything else under OTHER if there is any."""
    kept = {name: counts.get(name, 0) for name in names}
    rest = sum(counts.values()) - sum(kept.values())
    return {**kept, OTHER: rest} if rest else kept


def histogram(rates: Iterable[float | None], bins: int) -> list[float]:
    """Return the share of prompts at each of `bins` equally spaced pass rates from 0 to 1."""
    known = np.clip([r for r in rates if r is not None], 0.0, 1.0)
    if not len(known):
        return [0.0] * bins
    places = np.rint(known * (bins - 1)).astype(int)
    return [float(n) / len(known) for n in np.bincount(places, minlength=bins)]


def box(values: NDArray[np.floating[Any]]) -> Box | None:
    """Return the five numbers of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, q1, median, q3, high = (float(v) for v in np.percentile(finite, [5, 25, 50, 75, 95]))
    return Box(low, q1, median, q3, high, len(finite))


def by_source(
    prompt_ids: Sequence[str], values: NDArray[np.float32], sources: Mapping[str, str]
) -> dict[str, NDArray[np.float32]]:
    """Split values [P], aligned with `prompt_ids`, by the prompts' sources."""
    names = np.array([sources.get(i, "unknown") for i in prompt_ids], dtype=object)
    return {str(name): values[names == name] for name in sorted(set(names.tolist()))}
