"""How well sketches find what exact influence finds, at what cost: figures, fronts, advice.

For one target, with c the exact cosines of the pool's prompts and c' a sketch's:

    precision@k    share of the k prompts of highest c that are among the k of highest c'
    fused          the same, of the prompts selected by reciprocal-rank fusion over all targets
    Spearman       correlation of the ranks of c and c'
    error          |c' - c| / |c|, norms over prompts

averaged over targets, then over seeds with Student's 95% interval. Everything here is arrays in
and plain values out; `fidelity_experiment` makes the sketches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.estimation.intervals import Interval, mean_interval
from cropi.schema import InfluenceEstimate
from cropi.selection import fuse, selection_size, top_by_score
from cropi.short_repr import ShortRepr

Cost = Literal["seconds", "bytes"]
Cosines = Mapping[str, NDArray[np.floating]]

BYTES_PER_NUMBER = 2
"""Stored sketches are float16 (docs/method.md)."""


@dataclass(frozen=True)
class SketchSpec:
    """A kind of sketch: its name (with a projection after a colon), dimensions, share kept."""

    name: str
    dim: int
    ratio: float | None = None

    @property
    def family(self) -> str:
        """Name and ratio, without dimensions."""
        return self.name if self.ratio is None else f"{self.name} {self.ratio:g}"

    @property
    def label(self) -> str:
        """Name, ratio and dimensions in words."""
        return f"{self.family}, {self.dim:,}"


@dataclass(frozen=True)
class SketchAgreement:
    """One sketch (one seed) against exact; by target, and `fused` over them."""

    precision: dict[str, float]
    spearman: dict[str, float]
    error: dict[str, float]
    fused: float


@dataclass(frozen=True, repr=False)
class SketchFidelity(ShortRepr):
    """A kind of sketch over its seeds: means over targets, `precisions` by target.

    `seconds` is what one more pool prompt takes, its gradient included; `bytes` its stored size.
    """

    spec: SketchSpec
    precision: Interval
    precisions: dict[str, Interval]
    fused: Interval
    spearman: Interval
    error: Interval
    seconds: float
    bytes: int

    def cost(self, kind: Cost) -> float:
        """Seconds or bytes per prompt."""
        return self.seconds if kind == "seconds" else float(self.bytes)


@dataclass(frozen=True)
class Budget:
    """What the user can afford per prompt, and the precision that is enough; None: any."""

    seconds: float | None = None
    bytes: float | None = None
    precision: float | None = None

    def __post_init__(self) -> None:
        for what, value, most in (
            ("seconds", self.seconds, math.inf),
            ("bytes", self.bytes, math.inf),
            ("precision", self.precision, 1.0),
        ):
            if value is not None and not (0 < value <= most and math.isfinite(value)):
                raise InputError(
                    f"a budget of {what} {value} per prompt is impossible; give a number above 0"
                    + (f", {most:g} at most" if most < math.inf else "")
                )

    def affords(self, sketch: SketchFidelity) -> bool:
        """Whether a sketch costs no more than the budget."""
        in_time = self.seconds is None or sketch.seconds <= self.seconds
        return in_time and (self.bytes is None or sketch.bytes <= self.bytes)

    def suffices(self, sketch: SketchFidelity) -> bool:
        """Whether a sketch is precise enough."""
        return self.precision is None or sketch.precision.mean >= self.precision


@dataclass(frozen=True, repr=False)
class FidelityReport(ShortRepr):
    """All sketches against exact influence on one pool.

    `prompts` is how many informative prompts of the pool were compared, `share` the k of
    precision@k over them, `exact_seconds` what exact influence takes per prompt.
    """

    also_shown = ("advice",)

    prompts: int
    targets: dict[str, int]
    coordinates: int
    share: float
    seeds: int
    exact_seconds: float
    sketches: list[SketchFidelity]
    budget: Budget = field(default_factory=Budget)
    notes: list[str] = field(default_factory=list)

    @property
    def recommended(self) -> SketchFidelity | None:
        """The sketch for the budget; None if none is within it."""
        return recommend(self.sketches, self.budget)

    @property
    def advice(self) -> str | None:
        """The recommended sketch's name."""
        return self.recommended.spec.label if self.recommended else None

    @property
    def verdict(self) -> str:
        """What to use, in one sentence."""
        best, exact = self.recommended, f"exact takes {1000 * self.exact_seconds:.2g} ms per prompt"
        if best is None:
            return f"Nothing fits the budget: {self._nearest()}; {exact}."
        result = (
            f"finds {best.precision.mean:.1%} of exact influence's top {self.share:.0%} at "
            f"{1000 * best.seconds:.2g} ms and {best.bytes:,} bytes per prompt"
        )
        limit = self.budget.seconds
        if limit is not None and self.exact_seconds > limit:
            return f"Use {best.spec.label}: it {result}; {exact}, over the limit."
        return f"Use {best.spec.label}: it {result}; {exact} and stores nothing."

    def _nearest(self) -> str:
        affordable = [s for s in self.sketches if self.budget.affords(s)]
        if affordable:
            best = max(affordable, key=lambda s: s.precision.mean)
            return f"within it {best.spec.label} is the most precise, {best.precision.mean:.1%}"
        fastest = min(self.sketches, key=lambda s: s.seconds)
        smallest = min(self.sketches, key=lambda s: s.bytes)
        return (
            f"the fastest is {fastest.spec.label} at {1000 * fastest.seconds:.2g} ms, the smallest "
            f"{smallest.spec.label} at {smallest.bytes:,} bytes per prompt"
        )


def sketch_agreement(
    exact: Cosines, sketched: Cosines, ids: Sequence[str], share: float
) -> SketchAgreement:
    """Compare one sketch's cosines with the exact ones; ties are broken by id, as in selection."""
    count = selection_size(share, len(ids))
    return SketchAgreement(
        precision={n: top_overlap(exact[n], sketched[n], ids, count) for n in exact},
        spearman={n: rank_correlation(exact[n], sketched[n]) for n in exact},
        error={n: relative_error(exact[n], sketched[n]) for n in exact},
        fused=_fused_overlap(exact, sketched, ids, count),
    )


def summarise(
    spec: SketchSpec, agreements: Sequence[SketchAgreement], seconds: float
) -> SketchFidelity:
    """Means over targets and intervals over seeds."""
    return SketchFidelity(
        spec=spec,
        precision=mean_interval([_mean(a.precision) for a in agreements]),
        precisions={
            n: mean_interval([a.precision[n] for a in agreements]) for n in agreements[0].precision
        },
        fused=mean_interval([a.fused for a in agreements]),
        spearman=mean_interval([_mean(a.spearman) for a in agreements]),
        error=mean_interval([_mean(a.error) for a in agreements]),
        seconds=seconds,
        bytes=BYTES_PER_NUMBER * spec.dim,
    )


def top_overlap(
    exact: NDArray[np.floating], sketched: NDArray[np.floating], ids: Sequence[str], count: int
) -> float:
    """Share of the exact top `count` that the sketch's top `count` holds."""
    tops = [set(top_by_score(cosines, ids, count)) for cosines in (exact, sketched)]
    return len(tops[0] & tops[1]) / count


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's correlation, equal values sharing their mean rank; NaN for constant ones."""
    first, second = _ranks(a), _ranks(b)
    if len(a) < 2 or first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def relative_error(exact: NDArray[np.floating], sketched: NDArray[np.floating]) -> float:
    """|c' - c| / |c|, norms over prompts."""
    truth = exact.astype(np.float64)
    length = float(np.linalg.norm(truth))
    return float(np.linalg.norm(sketched - truth)) / length if length else math.nan


def pareto(sketches: Sequence[SketchFidelity], kind: Cost) -> list[SketchFidelity]:
    """Those that no other beats in precision at no higher cost, cheapest first."""
    front: list[SketchFidelity] = []
    for sketch in sorted(sketches, key=lambda s: (s.cost(kind), -s.precision.mean)):
        if not front or sketch.precision.mean > front[-1].precision.mean:
            front.append(sketch)
    return front


def recommend(sketches: Sequence[SketchFidelity], budget: Budget) -> SketchFidelity | None:
    """The sketch for a budget; None if none is within it.

    With a precision that is enough, the smallest (then fastest) that has it. Otherwise the most
    precise, or a smaller one that is as precise within the winner's interval.
    """
    fitting = [s for s in sketches if budget.affords(s) and budget.suffices(s)]
    if not fitting:
        return None
    if budget.precision is None:
        best = max(fitting, key=lambda s: s.precision.mean)
        close = best.precision.mean - best.precision.half
        fitting = [s for s in fitting if s.precision.mean >= close]
    return min(fitting, key=lambda s: (s.bytes, s.seconds))


def _fused_overlap(exact: Cosines, sketched: Cosines, ids: Sequence[str], count: int) -> float:
    chosen = []
    for cosines in (exact, sketched):
        estimate = InfluenceEstimate.from_means(ids, cosines)
        chosen.append(set(fuse(estimate, count).prompt_ids))
    return len(chosen[0] & chosen[1]) / count


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: NDArray[np.float64] = last - (counts - 1) / 2
    return middle[place]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
