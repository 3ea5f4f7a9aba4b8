"""What a run directory says about the work, the speed and the responses of its phases.

Two short runs of the same settings, one several times the size of the other, give every phase its
rate, and what it costs to begin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cropi.forecast.workload import Behaviour, SampledSet, Work
from cropi.rollouts import read_rollouts
from cropi.schema import RolloutGroup
from cropi.store.metrics import (
    METRICS,
    START_EVALUATION,
    TIMINGS,
    ClockRow,
    CostRow,
    EvaluationRow,
    TimingRow,
    read_rows,
)
from cropi.store.run_directory import RunDirectory, pool_rollouts


@dataclass(frozen=True)
class LinearCost:
    """Seconds of a phase: `fixed` for each start, and `per_flop` of its work."""

    fixed: float
    per_flop: float


@dataclass(frozen=True)
class PhaseObservation:
    """What one phase took in a run: seconds, FLOPs, and how often it began."""

    seconds: float
    flops: float
    begins: int


Observations = Mapping[str, PhaseObservation]
"""By phase. `training` is that of the steps alone, `training start` what a stage took besides."""
START = "training start"
TRAINED = "arms/*/stages/*/rollouts/training.parquet"
"""Responses to the prompts that were trained on, where no others were sampled."""


def observe(root: Path) -> dict[str, PhaseObservation]:
    """The seconds and FLOPs of each phase of a finished run."""
    timings = read_rows(root / TIMINGS)
    seconds: dict[str, float] = defaultdict(float)
    begins: dict[str, int] = defaultdict(int)
    flops: dict[str, float] = defaultdict(float)
    for timing in timings.of_kind(TimingRow):
        seconds[timing.phase] += timing.seconds
        begins[timing.phase] += 1
    for cost in read_rows(root / METRICS).of_kind(CostRow):
        flops[cost.phase] += cost.flops
    in_steps = _clocked(timings.of_kind(ClockRow))
    seconds[START] = max(0.0, seconds["training"] - in_steps)
    begins[START] = begins["training"]
    seconds["training"] = in_steps
    return {p: PhaseObservation(s, flops[p], begins[p]) for p, s in seconds.items()}


def _clocked(rows: Iterable[ClockRow]) -> float:
    """Seconds of all optimizer steps of all arms."""
    last: dict[str, float] = defaultdict(float)
    for row in rows:
        last[row.arm] = max(last[row.arm], row.seconds)
    return sum(last.values())


def linear_costs(small: Observations, large: Observations) -> dict[str, LinearCost]:
    """The cost of each phase, fitted through a short run and a longer one."""
    fitted = {phase: _linear_cost(small.get(phase), seen) for phase, seen in large.items()}
    start = fitted.pop(START, LinearCost(0.0, 0.0))
    if "training" in fitted:
        fitted["training"] = LinearCost(start.fixed, fitted["training"].per_flop)
    return fitted


def _linear_cost(small: PhaseObservation | None, large: PhaseObservation) -> LinearCost:
    """The cost through two runs; a rate that noise makes negative becomes that of the larger."""
    begins = max(1, large.begins)
    if large.flops <= 0:
        return LinearCost(large.seconds / begins, 0.0)
    more = 0.0 if small is None else large.flops - small.flops
    longer = 0.0 if small is None else large.seconds - small.seconds
    if more <= 0 or longer <= 0:
        return LinearCost(0.0, large.seconds / large.flops)
    rate = min(longer / more, large.seconds / large.flops)
    return LinearCost((large.seconds - rate * large.flops) / begins, rate)


@dataclass(frozen=True)
class MeasuredSpeed:
    """Seconds by the costs that a probe fitted here; None for a phase that it did not have."""

    parameters: int
    linear_costs: Mapping[str, LinearCost]

    def seconds(self, work: Work) -> float | None:
        """Seconds of all work of a phase."""
        cost = self.linear_costs.get(work.phase)
        if cost is None:
            return None
        return work.begins * cost.fixed + work.flops(self.parameters) * cost.per_flop


def behaviour_of(root: Path, source: str, guess: Behaviour) -> Behaviour:
    """How a run's policy has answered; what the run has not sampled stays as in `guess`.

    Responses in training are taken to be as long as the pool's: a short run trains on few prompts.
    """
    directory = RunDirectory(root)
    stored = pool_rollouts(root) or next(iter(sorted(root.glob(TRAINED))), None)
    pool = guess.pool if stored is None else sampled_set(read_rollouts(stored))
    files = sorted((root / "rollouts" / "validation").glob("*.parquet"))
    targets = [group for file in files for group in read_rollouts(file)]
    return Behaviour(
        pool=pool,
        validation=sampled_set(targets) if targets else guess.validation,
        trained_tokens=pool.response_tokens,
        evaluated_tokens=_evaluated_tokens(directory) or guess.evaluated_tokens,
        source=source,
    )


def sampled_set(groups: Sequence[RolloutGroup]) -> SampledSet:
    """What is to be known of a set's responses."""
    responses = sum(len(group.responses) for group in groups)
    scored = [group for group in groups if group.informative] or list(groups)
    return SampledSet(
        response_tokens=sum(group.tokens for group in groups) / max(1, responses),
        informative=float(np.mean([group.informative for group in groups])),
        scored_tokens=float(np.mean([_scored_tokens(group) for group in scored])),
        groups=len(groups),
    )


def _scored_tokens(group: RolloutGroup) -> int:
    """Positions that scoring computes: the prompt once, equal responses once, no last token."""
    distinct = {each.ids.tobytes(): len(each.ids) for each in group.usable}
    return len(group.prompt_ids) + sum(length - 1 for length in distinct.values())


def _evaluated_tokens(directory: RunDirectory) -> float:
    rows = read_rows(directory.root / START_EVALUATION).of_kind(EvaluationRow)
    responses = sum(sum(row.statuses.values()) for row in rows)
    return sum(row.sampled_tokens for row in rows) / max(1, responses)
