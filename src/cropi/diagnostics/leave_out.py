"""What retraining without some prompts did to a validation set, and what influence predicted.

The same policy is trained by GRPO for the same number of steps on the whole pool D and on D
without a block B, and each result is evaluated:

    predicted:  mean over D \\ B of <u_V, g(s)>  -  mean over D of <u_V, g(s)>
    actual:     accuracy on V after training on D \\ B  -  after training on D

with u_V the unit target direction under the start policy, and g(s) = 0 for prompts without a
gradient. To first order the two are proportional, by the length of the training; so the question
is how well they correlate over blocks, as in the linear datamodeling score of TRAK (Park et al.
2023), and training on D again with other seeds says how much of it noise can hide. Everything here
is arrays in and plain values out; `leave_out_experiment` retrains.

Shape legend: N scored prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cropi.diagnostics.step import Band, StepPlan, plan_steps
from cropi.estimation.intervals import Interval, correlation_interval, mean_interval
from cropi.schema import InfluenceEstimate
from cropi.short_repr import ShortRepr

LEFT_OUT: tuple[Band, ...] = ("top", "bottom", "random")
"""Blocks that are left out: most and least influential for each set, and drawn at random."""


@dataclass(frozen=True)
class BlockOutcome:
    """One block left out, as one validation set sees it.

    `chosen_for` is the set by whose ranking the block was chosen, None for a random one.
    """

    band: Band
    chosen_for: str | None
    prompts: int
    predicted: float
    actual: float


@dataclass(frozen=True, repr=False)
class TargetLeaveOut(ShortRepr):
    """All retrainings as one validation set sees them.

    `start` is the accuracy before training, `whole` that after training on the whole pool, over
    its repeats.
    """

    name: str
    start: float
    whole: Interval
    blocks: list[BlockOutcome]

    @property
    def correlation(self) -> Interval:
        """Pearson's correlation of predicted and actual over all blocks; NaN if undefined."""
        return correlation_interval(
            [b.predicted for b in self.blocks], [b.actual for b in self.blocks]
        )

    def change(self, band: Band) -> float | None:
        """The mean actual change of a band's blocks; those chosen for another set do not count."""
        values = [b.actual for b in self.blocks if b.band == band and self.sees(b)]
        return float(np.mean(values)) if values else None

    def sees(self, block: BlockOutcome) -> bool:
        """Whether a block was chosen for this set, or for none."""
        return block.chosen_for in (None, self.name)

    @property
    def in_order(self) -> bool:
        """Whether leaving out the most influential prompts did more harm than the least."""
        top, bottom = self.change("top"), self.change("bottom")
        return top is not None and bottom is not None and top < bottom


@dataclass(frozen=True, repr=False)
class LeaveOutReport(ShortRepr):
    """Every block left out of a pool of `pool` prompts, `steps` of training each."""

    also_shown = ("verdict",)

    targets: list[TargetLeaveOut]
    pool: int
    steps: int
    repeats: int
    notes: list[str] = field(default_factory=list)

    @property
    def as_predicted(self) -> bool:
        """Whether predicted and actual go together for every set, beyond chance."""
        return all(_beyond_chance(target.correlation) for target in self.targets)

    @property
    def verdict(self) -> str:
        """What the retrainings say, in one sentence with a part for each validation set."""
        lead = "As predicted" if self.as_predicted else "Not shown"
        return f"{lead}: {'; '.join(map(self._sentence, self.targets))}."

    def _sentence(self, target: TargetLeaveOut) -> str:
        correlation = target.correlation
        size = "no correlation of predicted and actual change is defined"
        if math.isfinite(correlation.mean):
            size = f"predicted and actual change correlate at {correlation.mean:z.2f}"
        if correlation.low is not None and correlation.high is not None:
            size += f" [{correlation.low:z.2f}, {correlation.high:z.2f}]"
        names = {
            "top": "the most influential",
            "bottom": "the least influential",
            "random": "random ones",
        }
        changes = [
            f"{name} {100 * change:+z.1f}"
            for band in LEFT_OUT
            if (name := names[band]) and (change := target.change(band)) is not None
        ]
        return (
            f"on {target.name} {size} over {len(target.blocks)} blocks; without "
            f"{', '.join(changes)} points of accuracy{_noise(target.whole)}"
        )


def plan_blocks(
    scores: InfluenceEstimate, targets: Sequence[str], share: float, random: int, seed: int
) -> list[StepPlan]:
    """The blocks: each target's most and least influential `share` of the scored prompts, and
    random ones. Raises InputError if fewer than three prompts are scored.
    """
    size = max(1, int(share * len(scores.prompt_ids) + 1e-9))
    plans = plan_steps(scores, targets, size, random, 0, seed)
    return [plan for plan in plans if plan.band in LEFT_OUT]


def predicted_change(
    projections_N: NDArray[np.float64], members: NDArray[np.int64], pool: int
) -> float:
    """The change of a pool's mean projection on a target when `members` are left out of it."""
    total, without = float(projections_N.sum()), float(np.delete(projections_N, members).sum())
    return without / (pool - len(members)) - total / pool


def leave_out_report(
    scores: InfluenceEstimate,
    plans: Sequence[StepPlan],
    start: Mapping[str, float],
    whole: Sequence[Mapping[str, float]],
    without: Sequence[Mapping[str, float]],
    steps: int,
    notes: Sequence[str] = (),
) -> LeaveOutReport:
    """Put predictions beside accuracies by set: of the start, of `whole` repeats, of each plan.

    `scores` are of the scored prompts alone.
    """
    targets = []
    for name in start:
        projections_N = scores.mean[name].astype(np.float64) * scores.norms
        reference = mean_interval([accuracy[name] for accuracy in whole])
        blocks = [
            BlockOutcome(
                plan.band,
                plan.target,
                len(plan.members),
                predicted_change(projections_N, plan.members, scores.pool_size),
                accuracy[name] - reference.mean,
            )
            for plan, accuracy in zip(plans, without, strict=True)
        ]
        targets.append(TargetLeaveOut(name, start[name], reference, blocks))
    return LeaveOutReport(targets, scores.pool_size, steps, len(whole), list(notes))


def _beyond_chance(correlation: Interval) -> bool:
    return correlation.low is not None and correlation.low > 0


def _noise(whole: Interval) -> str:
    """How far training on the whole pool again is from itself."""
    if whole.count < 2 or whole.low is None:
        return ""
    return f" (training on all of it again: within {100 * whole.half:.1f})"
