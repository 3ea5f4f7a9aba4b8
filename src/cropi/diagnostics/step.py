"""What real gradient steps did to a validation objective, and what influence predicted.

A step on a band of prompts goes along its mean gradient g, and all steps are equally long:

    theta' = theta + eta sqrt(N) g / |g|      predicted: <gbar_V, theta' - theta>
    J_V(theta) = mean over v in V of J(v)     actual:    J_V(theta') - J_V(theta)

eta sqrt(N), N the number of trainable weights, is about the length of one Adam step at learning
rate eta, in which every weight moves by about eta. Everything here is arrays in and plain values
out; `step_experiment` takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.estimation.intervals import Interval, mean_interval
from cropi.schema import InfluenceEstimate
from cropi.selection import top_by_score
from cropi.short_repr import ShortRepr

Band = Literal["top", "middle", "bottom", "random", "single"]
CHOSEN: tuple[Band, ...] = ("top", "middle", "bottom")
BANDS: tuple[Band, ...] = (*CHOSEN, "random")

RATIO_OK = (0.7, 1.3)
"""Actual over predicted within which a first-order prediction is called good."""
NEGLIGIBLE = 0.05
"""A prediction below this share of the largest is too near zero for a ratio to mean anything."""


@dataclass(frozen=True)
class StepPlan:
    """A band to step on: places in the scored prompts, and the set it was chosen for, if any."""

    band: Band
    target: str | None
    members: NDArray[np.int64]


@dataclass(frozen=True)
class StepOutcome:
    """One real step and its effect on one validation set.

    `cosine` is that of the step with gbar_V; `spread` the actual change over the set's prompts.
    """

    band: Band
    learning_rate: float
    prompts: int
    cosine: float
    predicted: float
    actual: float
    spread: Interval


@dataclass(frozen=True)
class BandSummary:
    """The steps of one band at one learning rate; intervals over repeats, where repeated.

    `ratio` is actual over predicted, None where the prediction is negligible.
    """

    band: Band
    learning_rate: float
    predicted: Interval
    actual: Interval
    ratio: float | None
    agreeing: int
    steps: int


@dataclass(frozen=True, repr=False)
class TargetSteps(ShortRepr):
    """All steps seen by one validation set: its objective before, and |gbar_V|."""

    name: str
    prompts: int
    objective: float
    gradient_norm: float
    steps: list[StepOutcome]

    def at(self, learning_rate: float, band: Band) -> list[StepOutcome]:
        """The steps of a band at a learning rate."""
        return [s for s in self.steps if s.learning_rate == learning_rate and s.band == band]

    def summary(self, learning_rate: float) -> list[BandSummary]:
        """One summary per band, at one learning rate."""
        by_band = {band: self.at(learning_rate, band) for band in BANDS}
        largest = max((abs(s.predicted) for steps in by_band.values() for s in steps), default=0.0)
        return [
            _summary(band, learning_rate, steps, largest)
            for band, steps in by_band.items()
            if steps
        ]

    def agreement(self, learning_rate: float) -> tuple[int, int]:
        """Steps whose change has the predicted sign, of all at a learning rate."""
        steps = [s for s in self.steps if s.learning_rate == learning_rate]
        return sum(map(_agrees, steps)), len(steps)

    def correlation(self, learning_rate: float) -> float | None:
        """Pearson's correlation of predicted and actual over single prompts; None without."""
        steps = self.at(learning_rate, "single")
        return pearson([s.predicted for s in steps], [s.actual for s in steps])

    def in_order(self, learning_rate: float) -> bool:
        """Whether the top band did better than random ones on average, and they than the bottom."""
        means = {row.band: row.actual.mean for row in self.summary(learning_rate)}
        order = [means[band] for band in ("top", "random", "bottom") if band in means]
        return all(a > b for a, b in pairwise(order))

    def reach(self, learning_rates: Sequence[float]) -> float | None:
        """The largest rate up to which the top band's change is within RATIO_OK of predicted."""
        reached = None
        for rate in sorted(learning_rates):
            top = next((r for r in self.summary(rate) if r.band == "top"), None)
            if top is None or top.ratio is None or not RATIO_OK[0] <= top.ratio <= RATIO_OK[1]:
                break
            reached = rate
        return reached


@dataclass(frozen=True, repr=False)
class StepReport(ShortRepr):
    """Steps on all bands under one policy; `main` is the rate that the verdict is about."""

    also_shown = ("verdict",)

    targets: list[TargetSteps]
    learning_rates: tuple[float, ...]
    main: float
    prompts: int
    parameters: int
    notes: list[str] = field(default_factory=list)

    @property
    def as_predicted(self) -> bool:
        """Whether every set's bands are in order and its top band's step did what was predicted."""
        return all(self._good(target) for target in self.targets)

    def _good(self, target: TargetSteps) -> bool:
        agreeing, steps = target.agreement(self.main)
        reached = target.reach([self.main]) is not None
        return reached and target.in_order(self.main) and agreeing >= 0.9 * steps

    @property
    def verdict(self) -> str:
        """What the steps say, in one sentence with a part for each validation set."""
        lead = "As predicted" if self.as_predicted else "Not as predicted"
        return f"{lead}: {'; '.join(self._sentence(target) for target in self.targets)}."

    def _sentence(self, target: TargetSteps) -> str:
        rows = {row.band: row for row in target.summary(self.main)}
        top = rows["top"]
        first = f"on {target.name} a step on the {self.prompts} most influential prompts changed J "
        first += f"by {top.actual.mean:+z.2g} ({top.predicted.mean:+z.2g} predicted)"
        names = {"random": "as many random ones", "bottom": "the least influential"}
        others = [
            f"{name} by {rows[band].actual.mean:+z.2g}"
            for band, name in names.items()
            if band in rows
        ]
        agreeing, steps = target.agreement(self.main)
        return (
            f"{', '.join([first, *others])}, with the predicted sign in {agreeing} of {steps} steps"
        )


def plan_steps(
    scores: InfluenceEstimate,
    targets: Sequence[str],
    size: int,
    repeats: int,
    singles: int,
    seed: int,
) -> list[StepPlan]:
    """The bands: each target's top, middle and bottom `size`, random ones, and single prompts.

    Single prompts are spread evenly over the ranking by mean cosine. Raises InputError if fewer
    than three prompts are scored.
    """
    total = len(scores.prompt_ids)
    if total < 3:
        raise InputError(
            f"only {total} prompts of the pool have a score; three are needed for a top, a middle "
            "and a bottom"
        )
    size = min(size, total // 3)
    plans = []
    for name in targets:
        order = top_by_score(scores.mean[name], scores.prompt_ids)
        middle = (total - size) // 2
        cuts = (order[:size], order[middle : middle + size], order[-size:])
        plans += [StepPlan(b, name, np.sort(m)) for b, m in zip(CHOSEN, cuts, strict=True)]
    rng = np.random.default_rng(seed)
    draws = [rng.choice(total, size, replace=False) for _ in range(repeats)]
    plans += [StepPlan("random", None, np.sort(drawn)) for drawn in draws]
    mean = np.mean([scores.mean[name] for name in targets], axis=0)
    ranked = np.argsort(-mean, kind="stable")
    places = np.unique(np.linspace(0, total - 1, min(singles, total)).round().astype(np.int64))
    return [*plans, *(StepPlan("single", None, ranked[p : p + 1]) for p in places)]


def require_scored(
    scores: InfluenceEstimate, pool: Mapping[str, object], targets: Sequence[str]
) -> None:
    """Raise InputError unless the scores are of this pool and these targets."""
    for name in targets:
        if name not in scores.mean:
            raise InputError(
                f"the scores have no validation set {name!r}, only {', '.join(scores.mean)}; "
                "name the sets as they were scored"
            )
    if unknown := [i for i in scores.prompt_ids if i not in pool]:
        raise InputError(
            f"{len(unknown)} scored prompts are not informative prompts of the pool, first "
            f"{unknown[0]!r}; give the rollouts that were scored"
        )


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of two lists; None of fewer than three values, or constant ones."""
    if len(a) < 3 or np.std(a) == 0 or np.std(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _summary(
    band: Band, learning_rate: float, steps: Sequence[StepOutcome], largest: float
) -> BandSummary:
    predicted = mean_interval([s.predicted for s in steps])
    actual = mean_interval([s.actual for s in steps])
    ratio = None
    if abs(predicted.mean) > NEGLIGIBLE * largest:
        ratio = actual.mean / predicted.mean
    return BandSummary(
        band,
        learning_rate,
        predicted,
        # A band that was stepped on once has the interval over the validation prompts instead.
        actual if len(steps) > 1 else steps[0].spread,
        ratio,
        sum(map(_agrees, steps)),
        len(steps),
    )


def _agrees(step: StepOutcome) -> bool:
    return math.copysign(1, step.predicted) == math.copysign(1, step.actual)
