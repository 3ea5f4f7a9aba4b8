"""A whole study measured: every strategy by itself, and against the baseline.

`measure` reads and computes; `write` leaves results.parquet, study.json and report.html. Both work
while cells are still missing: only finished cells count, and what is missing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from cropi.store.files import atomic_write, write_json, write_table
from cropi.study import measures
from cropi.study.measures import AXES, LEVELS, Axis, BreakEven, Curves, Estimate, Speed
from cropi.study.reading import Cell, StudyFiles, read_cells, results_table


@dataclass(frozen=True)
class Standing:
    """What one strategy did by itself: means over its finished seeds, with intervals.

    `change` is untargeted accuracy's last minus its first evaluation. `costs` are a seed's whole
    run, selection included, by measure; `phases` the same by phase and measure.
    """

    strategy: str
    curves: Curves
    start: float
    final: Estimate
    area: Estimate
    untargeted: Estimate | None
    change: Estimate | None
    costs: dict[str, float]
    phases: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """A strategy against the baseline, over the `seeds` that both have finished.

    `final`, `area` and `untargeted` are differences, the strategy's minus the baseline's. `speeds`
    has an entry for each axis and level that could be measured.
    """

    strategy: str
    seeds: tuple[int, ...]
    final: Estimate
    area: Estimate
    untargeted: Estimate | None
    speeds: dict[tuple[Axis, float], Speed]
    break_even: dict[float, BreakEven]


@dataclass(frozen=True)
class Study:
    """A study as read and measured. Strategies without a finished seed have no standing.

    `comparisons` is empty where the baseline has no finished seed; the baseline is not compared
    with itself. `levels` are the baseline's own, by share, with the steps it took to reach them;
    empty where it gained too little. `notes` say what keeps numbers from being given or from being
    read at face value.
    """

    files: StudyFiles
    standings: dict[str, Standing]
    comparisons: dict[str, Comparison]
    levels: dict[float, Speed]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The study's name: its config's, or its folder's."""
        return str(self.files.config.get("name") or self.files.root.resolve().name)

    @property
    def baseline(self) -> str:
        """The strategy that all others are held against."""
        return self.files.baseline

    def speed(
        self, strategy: str, axis: Axis = "steps", share: float = measures.MAIN_LEVEL
    ) -> Speed | None:
        """A strategy's acceleration on an axis at a level; of the baseline, its steps to it."""
        if strategy == self.baseline:
            return self.levels.get(share) if axis == "steps" else None
        found = self.comparisons.get(strategy)
        return found.speeds.get((axis, share)) if found else None

    def cells(self, strategy: str, finished: bool = True) -> list[Cell]:
        """The strategy's cells by seed; with `finished` only those that count."""
        own = [c for c in self.files.cells if c.strategy == strategy]
        return [c for c in own if c.finished or not finished]


def measure(root: Path) -> Study:
    """Read a study's directory and compute all of its measures.

    Raises InputError if `root` is no study's directory.
    """
    files = read_cells(root)
    notes: list[str] = []
    standings: dict[str, Standing] = {}
    for name in files.strategies:
        cells = [c for c in files.cells if c.strategy == name and c.finished]
        curves = curves_of(cells) if cells else None
        if curves is not None:
            standings[name] = _standing(name, curves, cells)
    comparisons = _comparisons(files, standings, notes)
    levels = _levels(standings.get(files.baseline))
    return Study(files, standings, comparisons, levels, tuple(notes))


def _levels(base: Standing | None) -> dict[float, Speed]:
    if base is None:
        return {}
    found = {f: measures.speed(base.curves, base.curves, f, "steps") for f in LEVELS}
    return {f: s for f, s in found.items() if s is not None}


def curves_of(cells: list[Cell]) -> Curves:
    """Return the curves of finished cells at the evaluation steps that all of them share.

    Every finished cell was evaluated at step 0 and at its last step.
    """
    steps = reduce(np.intersect1d, [c.steps for c in cells])
    places = [np.searchsorted(c.steps, steps) for c in cells]
    pairs = list(zip(cells, places, strict=True))
    others = np.array([c.untargeted[at] for c, at in pairs])
    costs: list[dict[Axis, Any]] = [{}, {}]
    for axis in AXES[1:]:
        training = np.array([c.spent.training[axis][at] for c, at in pairs])
        if not np.isnan(training).any():
            costs[0][axis] = training
            costs[1][axis] = np.array([c.spent.selection[axis][at] for c, at in pairs])
    return Curves(
        seeds=tuple(c.seed for c in cells),
        steps=steps.astype(np.float64),
        targeted=np.array([c.targeted[at] for c, at in pairs]),
        untargeted=None if np.isnan(others).any() else others,
        training=costs[0],
        selection=costs[1],
    )


def _standing(name: str, curves: Curves, cells: list[Cell]) -> Standing:
    others = curves.untargeted
    last = {m: np.mean([c.spent.total(m)[-1] for c in cells]) for m in cells[0].spent.training}
    phases = {
        phase: {m: float(np.mean([c.phases[phase][m] for c in cells])) for m in amounts}
        for phase, amounts in cells[0].phases.items()
    }
    return Standing(
        strategy=name,
        curves=curves,
        start=float(curves.targeted[:, 0].mean()),
        final=measures.estimate(curves.targeted[:, -1]),
        area=measures.estimate(measures.area(curves.steps, curves.targeted)),
        untargeted=None if others is None else measures.estimate(others[:, -1]),
        change=None if others is None else measures.estimate(others[:, -1] - others[:, 0]),
        costs={m: float(v) for m, v in last.items()},
        phases=phases,
    )


def _comparisons(
    files: StudyFiles, standings: dict[str, Standing], notes: list[str]
) -> dict[str, Comparison]:
    base = standings.get(files.baseline)
    if base is None:
        why = "has no finished seed yet" if files.baseline in files.strategies else "is not in it"
        notes.append(f"the baseline {files.baseline} {why}, so there are no accelerations")
        return {}
    _note_gain(base, notes)
    return {
        name: found
        for name, own in standings.items()
        if name != files.baseline and (found := _comparison(base, own, notes)) is not None
    }


def _note_gain(base: Standing, notes: list[str]) -> None:
    gain = float(measures.gain(base.curves.steps, base.curves.targeted.mean(axis=0)))
    if gain < measures.LEAST_GAIN:
        notes.append(
            f"the baseline {base.strategy} gained {100 * gain:.1f} points of targeted accuracy, "
            f"less than {100 * measures.LEAST_GAIN:.0f}: its levels mean nothing, so there are no "
            "accelerations"
        )


def _comparison(base: Standing, own: Standing, notes: list[str]) -> Comparison | None:
    shared = tuple(s for s in own.curves.seeds if s in base.curves.seeds)
    if not shared:
        notes.append(f"{own.strategy} shares no finished seed with the baseline {base.strategy}")
        return None
    if len(shared) < len(own.curves.seeds):
        notes.append(f"{own.strategy} is compared over {len(shared)} seeds, those of the baseline")
    if own.curves.steps[-1] != base.curves.steps[-1]:
        notes.append(
            f"{own.strategy} took {own.curves.steps[-1]:.0f} steps, {base.strategy} "
            f"{base.curves.steps[-1]:.0f}: their final accuracies and areas differ in length too"
        )
    mine, theirs = own.curves.of(shared), base.curves.of(shared)
    found = [(a, f, measures.speed(theirs, mine, f, a)) for a in AXES for f in LEVELS]
    even = {f: measures.break_even(theirs, mine, f) for f in LEVELS}
    return Comparison(
        strategy=own.strategy,
        seeds=shared,
        final=measures.estimate(mine.targeted[:, -1] - theirs.targeted[:, -1]),
        area=measures.estimate(
            measures.area(mine.steps, mine.targeted) - measures.area(theirs.steps, theirs.targeted)
        ),
        untargeted=_untargeted_difference(mine, theirs),
        speeds={(axis, share): s for axis, share, s in found if s is not None},
        break_even={share: e for share, e in even.items() if e is not None},
    )


def _untargeted_difference(mine: Curves, theirs: Curves) -> Estimate | None:
    if mine.untargeted is None or theirs.untargeted is None:
        return None
    return measures.estimate(mine.untargeted[:, -1] - theirs.untargeted[:, -1])


def write(root: Path) -> Study:
    """Measure the study and write results.parquet, study.json and report.html, each whole.

    Raises InputError if `root` is no study's directory or cannot be written to.
    """
    from cropi.study.page import render
    from cropi.study.summary import numbers

    study = measure(root)
    write_table(root / "results.parquet", results_table(study.files.cells))
    write_json(root / "study.json", numbers(study))
    with atomic_write(root / "report.html") as part:
        part.write_text(render(study), encoding="utf-8")
    return study
