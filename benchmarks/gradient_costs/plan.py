"""How much is measured, and what the parts of a run have in common."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gradient_costs import ours
from gradient_costs.rollouts import Sizes
from gradient_costs.setting import Setting


@dataclass(frozen=True)
class Options:
    """The command line."""

    quick: bool
    long: bool
    model: str | None
    pocket: bool
    device: str
    threads: int
    prompts: int | None
    dim: int
    gsm8k: Path | None
    cache: Path
    out: Path


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    `rounds` are for floor and exact, `others` for what is compared with them, `asides` for what no
    bar names. Whoever is not the floor or exact gives up rounds after `comfortable` seconds.
    Without `naive_pool` the naive design is not run on the pool: its prompts are of one size, and
    one was timed.
    """

    prompts: int
    rounds: int = 7
    others: int = 5
    asides: int = 5
    comfortable: float = math.inf
    micro_batches: tuple[int, ...] = (4, 8, 16, 32)
    sketches: tuple[str, ...] = ours.SKETCHES
    peers: tuple[str, ...] = ("bergson", "dattri")
    peer_prompts: int = 2
    pool: int = 40
    pool_repetitions: int = 2
    naive_pool: bool = True
    precision_prompts: int = 800
    seeds: int = 5
    dims: tuple[int, ...] = (8192, 32768)
    validation: int = 100
    memory_of: tuple[str, ...] = ("floor", "exact", "exact_shared")
    memory_prompts: int = 4


QUICK = Plan(
    prompts=2,
    rounds=5,
    others=2,
    asides=1,
    comfortable=130.0,
    micro_batches=(16,),
    sketches=(ours.DEFAULT_SKETCH, ours.FACTORED_SKETCH),
    peers=("bergson",),
    peer_prompts=1,
    pool=9,
    pool_repetitions=1,
    naive_pool=False,
    precision_prompts=200,
    seeds=1,
    dims=(8192,),
    validation=50,
    memory_of=("floor", "exact"),
    memory_prompts=1,
)
POCKET_SIZES = Sizes(20, 8, 12)
SMALL = Sizes(12, 4, 8)
"""Rollouts that only have to be there: targets whose directions are needed, and warm-ups."""


def plan_of(options: Options, device: str) -> Plan:
    """How much there is time for; a GPU wants more prompts at once."""
    plan = QUICK if options.quick else Plan(prompts=4)
    if device == "cuda":
        plan = replace(plan, prompts=32, micro_batches=(32, 64, 128), peer_prompts=8)
    return plan if options.prompts is None else replace(plan, prompts=options.prompts)


@dataclass
class Run:
    """What the parts of a run have in common."""

    options: Options
    setting: Setting
    plan: Plan
    folder: Path
    start: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> Any:
        """The model."""
        return self.setting.model

    @cached_property
    def scorers(self) -> ours.Scorers:
        """Ours, ready to run."""
        return ours.Scorers.of(self.model)

    @property
    def sizes(self) -> Sizes:
        """Sizes of the synthetic rollouts."""
        return POCKET_SIZES if self.options.pocket else Sizes()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def late(self) -> bool:
        """Whether whoever can should give up rounds."""
        return self.seconds > self.plan.comfortable

    def say(self, what: str) -> None:
        """Print a line with the seconds that have passed."""
        print(f"[{self.seconds:6.1f}s] {what}", flush=True)
