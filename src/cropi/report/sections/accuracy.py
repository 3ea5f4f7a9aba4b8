"""Accuracy against steps, tokens and seconds: targeted mean, untargeted mean, and every set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropi.report import curves
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    details,
    figure,
    hint,
    joined,
    switch,
    tag,
)
from cropi.report.numbers import (
    AXES,
    Axis,
    Curve,
    Row,
    arm_curve,
    baseline_of,
    evaluated_sets,
    passes,
    points,
    stage_ends,
)
from cropi.report.palette import arm_colour
from cropi.report.reading import RunData
from cropi.report.summary import ArmSummary, summarise
from cropi.report.wording import change, compared, percent

MULTIPLES = 24
"""Small charts shown at once; further sets wait behind a click."""


@dataclass(frozen=True, slots=True)
class View:
    """What all the charts of the section share, computed once."""

    run: RunData
    charts: Charts
    rows: list[Row]
    ks: list[int]
    ends: dict[Axis, list[float]]
    summary: list[ArmSummary]


def body(run: RunData, charts: Charts) -> Safe:
    """Return the switches, the two large charts and the small ones."""
    rows = [r for r in run.metrics if r.get("kind") in ("evaluation", "cost")]
    ks = passes(rows)
    if not ks:
        return absent("No evaluation in this run, so there is no accuracy to show.")
    ends = {axis: stage_ends(rows, run.timings, run.main, axis) for axis in AXES}
    summary = summarise(rows, run.timings, run.arms, run.main)
    view = View(run, charts, rows, ks, ends, summary)
    controls = tag("div", _switches(ks), legend(run), class_="controls")
    pair = tag("div", _mean(view, True), _mean(view, False), class_="pair")
    return joined([controls, pair, _explanation(run), *_each_set(view)])


def legend(run: RunData) -> Safe:
    """Return the arms with their colours."""
    chips = [
        tag("span", tag("i", style=f"background:{arm_colour(i)}"), arm, class_="chip")
        for i, arm in enumerate(run.arms)
    ]
    return tag("div", *chips, class_="legend")


def _switches(ks: Sequence[int]) -> Safe:
    by_axis = switch("axis", {a: a for a in AXES}, "what accuracy is drawn against")
    if len(ks) < 2:
        return by_axis
    return joined([by_axis, switch("k", {str(k): f"pass@{k}" for k in ks}, "which pass@k")])


def _mean(view: View, targeted: bool) -> Safe:
    title = "Targeted accuracy" if targeted else "Untargeted accuracy"
    sets = evaluated_sets(view.rows, targeted)
    if not sets:
        return figure(title, absent("No such set was evaluated."))
    name = f"{title}, mean of {len(sets)} sets" if len(sets) > 1 else f"{title}: {sets[0]}"
    variants = {(a, k): _curves(view, sets, a, k) for a in AXES for k in view.ks}
    if targeted:
        for axis in AXES:
            _mark(view, variants[axis, view.ks[0]], axis)
    return figure(name, _switched(view, variants, 380, name))


def _switched(view: View, variants: dict[tuple[Axis, int], Figure], height: int, name: str) -> Safe:
    """Register a chart that follows the switches; the one for k is there only for several k."""
    if len(view.ks) > 1:
        named = {f"{axis}|{k}": drawn for (axis, k), drawn in variants.items()}
        return view.charts.add_variants(["axis", "k"], named, height, name)
    single: dict[str, Figure] = {axis: drawn for (axis, _), drawn in variants.items()}
    return view.charts.add_variants(["axis"], single, height, name)


def _curves(view: View, sets: Sequence[str], axis: Axis, k: int, compact: bool = False) -> Figure:
    lines: list[tuple[str, str, Curve]] = []
    for i, arm in enumerate(view.run.arms):
        curve = arm_curve(view.rows, view.run.timings, arm, sets, axis, k)
        if curve is not None:
            lines.append((arm, arm_colour(i), curve))
    return curves.accuracy(lines, axis, view.ends[axis], compact)


def _mark(view: View, drawn: Figure, axis: Axis) -> None:
    """Show the baseline's final level, and where the main arm first reached it."""
    main = view.summary[0]
    name = baseline_of(view.run.arms, view.run.main)
    other = next((r for r in view.summary if r.arm == name), None)
    if other is None or main.level is None:
        return
    curves.mark_level(drawn, main.level, f"{name}'s final level, {percent(main.level)}")
    mine, theirs = _spent(main, axis), _spent(other, axis)
    if mine:
        said = _words(axis, main.acceleration, mine, theirs)
        curves.mark_reached(drawn, mine, main.level, said, arm_colour(0))


def _spent(row: ArmSummary, axis: Axis) -> float | None:
    places = {
        "steps": row.steps_to_level,
        "tokens": row.tokens_to_level,
        "seconds": row.seconds_to_level,
    }
    return places[axis]


def _words(axis: Axis, faster: float | None, mine: float, theirs: float | None) -> str:
    """Say the ratio on this axis as it is: fewer or more."""
    ratio = faster if axis == "steps" else theirs / mine if theirs else None
    if ratio is None:
        return "reached here"
    return f"{' '.join(compared(ratio))} {axis}"


def _explanation(run: RunData) -> Safe:
    return hint(
        f"Bands are one standard error over prompts. Dotted lines end a stage of {run.main}. ",
        "Level stretches on the token and time axes are rollouts and scoring being paid.",
    )


def _each_set(view: View) -> list[Safe]:
    ordered = [*evaluated_sets(view.rows, True), *evaluated_sets(view.rows, False)]
    if len(ordered) < 2:
        return []
    small = [_one_set(view, name) for name in ordered]
    grid = [tag("h3", "Every set"), tag("div", *small[:MULTIPLES], class_="multiples")]
    if small[MULTIPLES:]:
        rest = tag("div", *small[MULTIPLES:], class_="multiples")
        grid.append(details(f"{len(small) - MULTIPLES} more sets", rest))
    return grid


def _one_set(view: View, name: str) -> Safe:
    variants = {(a, k): _curves(view, [name], a, k, compact=True) for a in AXES for k in view.ks}
    chart = _switched(view, variants, 170, f"accuracy on {name}")
    targeted = name in evaluated_sets(view.rows, True)
    badge = tag("span", "targeted", class_="badge") if targeted else Safe()
    measured = points(view.rows, view.run.main, [name])
    span = change(measured[0].accuracy, measured[-1].accuracy) if measured else ""
    title = [tag("span", name, class_="set"), badge, tag("span", span, class_="span")]
    return figure(joined(title), chart)
