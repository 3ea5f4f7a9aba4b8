"""A whole study measured: every strategy by itself, and against the baseline.

Works while runs are still missing: only finished runs count, and what is missing is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from cropi.estimation.intervals import Interval, mean_interval
from cropi.short_repr import ShortRepr
from cropi.study import measures
from cropi.study.measures import AXES, LEVELS, Acceleration, Axis, BreakEven, Curves
from cropi.study.results import RunResult, StudyFiles, read_study
from cropi.text import plural

ORACLE = "oracle"
"""The strategy that knows where the targets are: a bound, not a method anyone could use."""


@dataclass(frozen=True, repr=False)
class StrategyResult(ShortRepr):
    """What one strategy did by itself: means over its finished seeds, with intervals.

    `change` is untargeted accuracy's last minus its first evaluation. `costs` are a seed's whole
    run, selection included, by measure; `phases` the same by phase and measure.
    """

    strategy: str
    curves: Curves
    start: float
    final: Interval
    area: Interval
    untargeted: Interval | None
    change: Interval | None
    costs: dict[str, float]
    phases: dict[str, dict[str, float]]


@dataclass(frozen=True, repr=False)
class BaselineComparison(ShortRepr):
    """A strategy against the baseline, over the `seeds` that both have finished.

    `final`, `area` and `untargeted` are differences, the strategy's minus the baseline's.
    `accelerations` has an entry for each axis and level that could be measured. `oracle_share` is
    the share of the oracle's advantage in area, over the seeds that the oracle has finished too.
    """

    strategy: str
    seeds: tuple[int, ...]
    final: Interval
    area: Interval
    untargeted: Interval | None
    oracle_share: Interval | None
    accelerations: dict[tuple[Axis, float], Acceleration]
    break_even: dict[float, BreakEven]


@dataclass(frozen=True, repr=False)
class Study(ShortRepr):
    """A study as read and measured. Strategies without a finished seed have no result.

    `comparisons` is empty where the baseline has no finished seed; the baseline is not compared
    with itself. `levels` are the baseline's own, by share, with the steps it took to reach them;
    empty where it gained too little. `notes` say why numbers are missing or need care.
    """

    files: StudyFiles
    strategies: dict[str, StrategyResult]
    comparisons: dict[str, BaselineComparison]
    levels: dict[float, Acceleration]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The study's name: its config's, or its folder's."""
        return str(self.files.config.get("name") or self.files.root.resolve().name)

    @property
    def baseline(self) -> str:
        """The strategy that all others are compared with."""
        return self.files.baseline

    def acceleration(
        self, strategy: str, axis: Axis = "steps", share: float = measures.MAIN_LEVEL
    ) -> Acceleration | None:
        """A strategy's acceleration on an axis at a level; of the baseline, its steps to it."""
        if strategy == self.baseline:
            return self.levels.get(share) if axis == "steps" else None
        comparison = self.comparisons.get(strategy)
        return comparison.accelerations.get((axis, share)) if comparison else None

    def runs(self, strategy: str, finished: bool = True) -> list[RunResult]:
        """The strategy's runs by seed; with `finished` only those that count."""
        runs = [run for run in self.files.runs if run.strategy == strategy]
        return [run for run in runs if run.finished or not finished]


def measure_study(root: Path) -> Study:
    """Read a study's directory and compute all of its measures.

    Raises InputError if `root` is not a study's directory.
    """
    files = read_study(root)
    notes: list[str] = []
    strategies: dict[str, StrategyResult] = {}
    for name in files.strategies:
        if runs := [run for run in files.runs if run.strategy == name and run.finished]:
            strategies[name] = _strategy_result(name, runs)
    comparisons = _comparisons(files, strategies, notes)
    levels = _levels(strategies.get(files.baseline))
    return Study(files, strategies, comparisons, levels, tuple(notes))


def _levels(baseline: StrategyResult | None) -> dict[float, Acceleration]:
    if baseline is None:
        return {}
    curves = baseline.curves
    levels = {share: measures.acceleration(curves, curves, share, "steps") for share in LEVELS}
    return {share: level for share, level in levels.items() if level is not None}


def mean_curves(runs: list[RunResult]) -> Curves:
    """Return the curves of finished runs at the evaluation steps that all of them share.

    Every finished run was evaluated at step 0 and at its last step.
    """
    steps = reduce(np.intersect1d, [run.steps for run in runs])
    pairs = [(run, np.searchsorted(run.steps, steps)) for run in runs]
    untargeted = np.array([run.untargeted[places] for run, places in pairs])
    training: dict[Axis, Any] = {}
    selection: dict[Axis, Any] = {}
    for axis in AXES[1:]:
        cost = np.array([run.costs.training[axis][places] for run, places in pairs])
        if not np.isnan(cost).any():
            training[axis] = cost
            selection[axis] = np.array([run.costs.selection[axis][at] for run, at in pairs])
    return Curves(
        seeds=tuple(run.seed for run in runs),
        steps=steps.astype(np.float64),
        targeted=np.array([run.targeted[places] for run, places in pairs]),
        untargeted=None if np.isnan(untargeted).any() else untargeted,
        training=training,
        selection=selection,
    )


def _strategy_result(name: str, runs: list[RunResult]) -> StrategyResult:
    curves = mean_curves(runs)
    others = curves.untargeted
    last = {m: np.mean([r.costs.total(m)[-1] for r in runs]) for m in runs[0].costs.training}
    phases = {
        phase: {m: float(np.mean([run.phases[phase][m] for run in runs])) for m in amounts}
        for phase, amounts in runs[0].phases.items()
    }
    return StrategyResult(
        strategy=name,
        curves=curves,
        start=float(curves.targeted[:, 0].mean()),
        final=mean_interval(curves.targeted[:, -1]),
        area=mean_interval(measures.area(curves.steps, curves.targeted)),
        untargeted=None if others is None else mean_interval(others[:, -1]),
        change=None if others is None else mean_interval(others[:, -1] - others[:, 0]),
        costs={m: float(v) for m, v in last.items()},
        phases=phases,
    )


def _comparisons(
    files: StudyFiles, strategies: dict[str, StrategyResult], notes: list[str]
) -> dict[str, BaselineComparison]:
    baseline = strategies.get(files.baseline)
    if baseline is None:
        why = "has no finished seed yet" if files.baseline in files.strategies else "is not in it"
        notes.append(f"the baseline {files.baseline} {why}, so there are no accelerations")
        return {}
    _note_small_gain(baseline, notes)
    oracle = strategies.get(ORACLE)
    compared = {
        name: _comparison(baseline, result, oracle, notes)
        for name, result in strategies.items()
        if name != files.baseline
    }
    return {name: comparison for name, comparison in compared.items() if comparison is not None}


def _note_small_gain(baseline: StrategyResult, notes: list[str]) -> None:
    curves = baseline.curves
    gain = float(measures.gain(curves.steps, curves.targeted.mean(axis=0)))
    if gain < measures.LEAST_GAIN:
        notes.append(
            f"the baseline {baseline.strategy} gained {100 * gain:z.1f} points of targeted "
            f"accuracy, less than {100 * measures.LEAST_GAIN:.0f}: its levels mean nothing, so "
            "there are no accelerations"
        )
        notes.append(
            "to have levels to compare at, train longer or faster (curriculum.steps_per_stage, "
            "training.learning_rate), or name targets that training improves"
        )


def _comparison(
    baseline: StrategyResult,
    result: StrategyResult,
    oracle: StrategyResult | None,
    notes: list[str],
) -> BaselineComparison | None:
    name, other = result.strategy, baseline.strategy
    shared = tuple(s for s in result.curves.seeds if s in baseline.curves.seeds)
    if not shared:
        notes.append(f"{name} shares no finished seed with the baseline {other}")
        return None
    if len(shared) < len(result.curves.seeds):
        count = plural(len(shared), "seed")
        notes.append(f"{name} is compared over {count}, those of the baseline")
    if result.curves.steps[-1] != baseline.curves.steps[-1]:
        notes.append(
            f"{name} took {result.curves.steps[-1]:.0f} steps, {other} "
            f"{baseline.curves.steps[-1]:.0f}: their final accuracies and areas differ in length "
            "too"
        )
    share = _oracle_share(baseline, result, oracle) if oracle is not None else None
    return _compare(name, result.curves.for_seeds(shared), baseline.curves.for_seeds(shared), share)


def _oracle_share(
    baseline: StrategyResult, result: StrategyResult, oracle: StrategyResult
) -> Interval | None:
    """The share over the seeds that all three have; None where there are none."""
    three = [each.curves for each in (baseline, result, oracle)]
    shared = tuple(s for s in three[1].seeds if all(s in curves.seeds for curves in three))
    return (
        measures.oracle_share(*(curves.for_seeds(shared) for curves in three)) if shared else None
    )


def _compare(
    name: str, curves: Curves, baseline: Curves, oracle_share: Interval | None
) -> BaselineComparison:
    """Compare curves of the same seeds, in the same order."""
    ratios = {(a, f): measures.acceleration(baseline, curves, f, a) for a in AXES for f in LEVELS}
    break_evens = {f: measures.break_even(baseline, curves, f) for f in LEVELS}
    area, baseline_area = (measures.area(c.steps, c.targeted) for c in (curves, baseline))
    untargeted = None
    if curves.untargeted is not None and baseline.untargeted is not None:
        change = curves.untargeted[:, -1] - baseline.untargeted[:, -1]
        untargeted = mean_interval(change)
    return BaselineComparison(
        strategy=name,
        seeds=curves.seeds,
        final=mean_interval(curves.targeted[:, -1] - baseline.targeted[:, -1]),
        area=mean_interval(area - baseline_area),
        untargeted=untargeted,
        oracle_share=oracle_share,
        accelerations={key: ratio for key, ratio in ratios.items() if ratio is not None},
        break_even={f: point for f, point in break_evens.items() if point is not None},
    )
