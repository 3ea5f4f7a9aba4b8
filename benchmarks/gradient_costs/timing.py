"""Taking turns: contenders run one after the other in every round, and medians are compared.

A machine's speed drifts by more than the differences that matter, so nobody is timed alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class Contender:
    """Something to time: `run` does it once on `units` (prompts, or tokens) and may time itself.

    A `run` that returns a number has measured its own seconds, in another process. What `may_miss`
    gives up its later rounds where time is short.
    """

    name: str
    run: Callable[[], object]
    rounds: int
    units: float = 1.0
    may_miss: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds a unit."""
        return statistics.median(self.seconds) / self.units

    @property
    def spread(self) -> dict[str, float]:
        """Seconds a unit: least, median, most, and how often it ran."""
        return {
            "median": self.median,
            "min": min(self.seconds) / self.units,
            "max": max(self.seconds) / self.units,
            "repetitions": len(self.seconds),
        }

    def turn(self) -> None:
        """Run once and note the time."""
        self.seconds.append(timed(self.run))


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call, finished on the device; what the call itself measured where it did."""
    synchronise()
    start = time.perf_counter()
    measured = run()
    synchronise()
    return measured if isinstance(measured, float) else time.perf_counter() - start


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    contenders: Sequence[Contender],
    say: Callable[[str], None],
    late: Callable[[], bool] = lambda: False,
) -> None:
    """Let everybody take turns, round by round, until each has had its rounds.

    Those with fewer rounds are spread over the first ones; the order turns round every round, so
    that nobody always follows the same neighbour.
    """
    for n in range(max(c.rounds for c in contenders)):
        playing = [
            c
            for c in contenders
            if len(c.seconds) < c.rounds and not (c.seconds and c.may_miss and late())
        ]
        for contender in playing if n % 2 == 0 else reversed(playing):
            contender.turn()
        say(f"round {n + 1}: " + ", ".join(f"{c.name} {c.seconds[-1]:.2f}s" for c in playing))


def ratio(above: Contender, below: Contender) -> dict[str, float]:
    """Ratio of medians, with the least and the most that single repetitions allow."""
    a, b = above.spread, below.spread
    return {
        "ratio": a["median"] / b["median"],
        "min": a["min"] / b["max"],
        "max": a["max"] / b["min"],
    }


def fastest(candidates: Sequence[T], make: Callable[[T], Callable[[], object]]) -> T:
    """The candidate that runs fastest, each tried once after a warm-up; a lone one just is."""
    if len(candidates) == 1:
        return candidates[0]
    make(candidates[0])()
    return min(candidates, key=lambda candidate: timed(make(candidate)))
