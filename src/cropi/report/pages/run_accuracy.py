"""Accuracy of a run against steps, tokens and seconds: targeted mean, untargeted mean, each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cropi.report.data.run_curves import AXES, Axis, Curve, arm_curve, stage_ends
from cropi.report.data.run_data import RunData
from cropi.report.data.run_summary import ArmSummary, fewer_or_more
from cropi.report.kit import charts as draw
from cropi.report.kit.charts import SMALL_MARGIN, arm_colour
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    badge,
    chart_label,
    controls,
    details,
    figure,
    hint,
    joined,
    pair,
    switch,
    tag,
)
from cropi.report.kit.number_format import change, percent
from cropi.study.accuracy import accuracy_points, evaluated_sets, measured_ks

SMALL_CHARTS = 24
"""Small charts shown at once; further sets are behind a click."""
AXIS_TITLES: dict[Axis, str] = {
    "steps": "optimizer steps",
    "tokens": "tokens, rollouts and scoring included",
    "seconds": "seconds, rollouts and scoring included",
}


@dataclass(frozen=True, slots=True)
class View:
    """What all the charts of the section share, computed once."""

    run: RunData
    charts: Charts
    ks: list[int]
    ends: dict[Axis, list[float]]
    summary: list[ArmSummary]


def body(run: RunData, charts: Charts) -> Safe:
    """Return the switches, the two large charts and the small ones."""
    ks = measured_ks(run.rows)
    if not ks:
        return absent("No evaluation in this run, so there is no accuracy to show.")
    ends = {axis: stage_ends(run.rows, run.main, axis) for axis in AXES}
    view = View(run, charts, ks, ends, run.summary())
    explanation = hint(
        f"Bands are one standard error over prompts. Dotted lines end a stage of {run.main}. ",
        "Flat stretches on the token and time axes are rollouts and scoring.",
    )
    large = pair(_mean(view, True), _mean(view, False))
    return joined([controls(_switches(ks), legend(run)), large, explanation, *_small_charts(view)])


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
    sets = evaluated_sets(view.run.rows, targeted)
    if not sets:
        return figure(title, absent("No such set was evaluated."))
    name = f"{title}, mean of {len(sets)} sets" if len(sets) > 1 else f"{title}: {sets[0]}"
    variants = {(a, k): _curves(view, sets, a, k) for a in AXES for k in view.ks}
    if targeted:
        for axis in AXES:
            _mark_level(view, variants[axis, view.ks[0]], axis)
    return figure(name, _switched(view, variants, 380, name))


def _switched(
    view: View, variants: Mapping[tuple[Axis, int], Figure], height: int, name: str
) -> Safe:
    """Register a chart that follows the switches; the one for k is there only for several k."""
    if len(view.ks) > 1:
        named = {f"{axis}|{k}": drawn for (axis, k), drawn in variants.items()}
        return view.charts.add_variants(["axis", "k"], named, height, name)
    single: dict[str, Figure] = {axis: drawn for (axis, _), drawn in variants.items()}
    return view.charts.add_variants(["axis"], single, height, name)


def _curves(view: View, sets: Sequence[str], axis: Axis, k: int, compact: bool = False) -> Figure:
    lines: list[tuple[str, str, Curve]] = []
    for i, arm in enumerate(view.run.arms):
        curve = arm_curve(view.run.rows, arm, sets, axis, k)
        if curve is not None:
            lines.append((arm, arm_colour(i), curve))
    return accuracy_chart(lines, axis, view.ends[axis], compact)


def accuracy_chart(
    curves: Sequence[tuple[str, str, Curve]],
    axis: Axis,
    boundaries: Sequence[float],
    compact: bool = False,
) -> Figure:
    """Draw accuracy with a band of one standard error; `curves` holds (name, colour, curve)."""
    data = [_error_band(colour, curve) for _, colour, curve in curves]
    for name, colour, curve in curves:
        marker = {"color": colour, "size": 4 if compact else 7}
        trace = draw.line(curve.x, curve.y, colour, 2 if compact else 3, name=chart_label(name))
        data.append(
            trace | {"mode": "lines+markers", "marker": marker, "hovertemplate": "%{y:.1%}"}
        )
    title = "" if compact else AXIS_TITLES[axis]
    layout: Figure = {
        "showlegend": False,
        "yaxis": {"tickformat": ".0%", "nticks": 4 if compact else 7, "rangemode": "nonnegative"},
        "xaxis": {"title": title, "tickformatstops": draw.AMOUNTS, "rangemode": "tozero"},
        "shapes": [stage_boundary(x) for x in boundaries],
        "hovermode": "x unified",
    }
    if compact:
        layout |= {"margin": SMALL_MARGIN}
        layout["xaxis"]["nticks"] = 5
    return {"data": data, "layout": layout}


def _error_band(colour: str, curve: Curve) -> Figure:
    above = [y + e for y, e in zip(curve.y, curve.error, strict=True)]
    below = [y - e for y, e in zip(curve.y, curve.error, strict=True)]
    return draw.band(curve.x, below, above, colour, 0.16)


def stage_boundary(x: float) -> Figure:
    """Return a dotted line where a stage ends."""
    return draw.rule(x, "x", "dot", "var(--line)", layer="below")


def _mark_level(view: View, drawn: Figure, axis: Axis) -> None:
    """Show the baseline's final level, and where the main arm first reached it."""
    main = view.summary[0]
    other = next((row for row in view.summary if row.arm == view.run.baseline), None)
    if other is None or main.level is None:
        return
    words = chart_label(f"{other.arm}'s final level, {percent(main.level)}", 60)
    drawn["layout"]["shapes"].append(draw.rule(main.level, "y"))
    level_note = draw.note(words, 1, main.level, xref="paper", xanchor="right", yanchor="bottom")
    drawn["layout"]["annotations"] = [level_note]
    reached = main.to_level[axis]
    if reached:
        gain = _gain(axis, main.acceleration, reached, other.to_level[axis])
        _mark_reached(drawn, reached, main.level, gain, arm_colour(0))


def _gain(axis: Axis, faster: float | None, main: float, other: float | None) -> str:
    """Say the ratio on this axis as it is: fewer or more."""
    value = faster if axis == "steps" else other / main if other else None
    return "reached here" if value is None else f"{' '.join(fewer_or_more(value))} {axis}"


def _mark_reached(drawn: Figure, x: float, level: float, words: str, colour: str) -> None:
    """Add a ring where the level is first reached, and a line down to its place on the axis."""
    ring = {"color": "var(--card)", "size": 13, "line": {"color": colour, "width": 3}}
    drawn["data"].append(draw.markers([x], [level], ring, hoverinfo="skip"))
    # The corner below the curves is empty, on the side where there is room for the words.
    widest = max(v for trace in drawn["data"] for v in trace["x"])
    side = {"xanchor": "left" if x < 0.6 * widest else "right", "yanchor": "bottom"}
    font = {"color": colour, "size": 14}
    text = f"<b>{chart_label(words, 40)}</b>"
    reached_note = draw.note(text, x, 0.02, yref="paper", **side) | {"font": font}
    drawn["layout"]["annotations"].append(reached_note)
    lowest = min(v for trace in drawn["data"] for v in trace["y"])
    down: Figure = {"type": "line", "x0": x, "x1": x, "y0": lowest, "y1": level}
    drawn["layout"]["shapes"].append(down | {"line": {"color": colour, "width": 1.5}})


def _small_charts(view: View) -> list[Safe]:
    rows = view.run.rows
    ordered = [*evaluated_sets(rows, True), *evaluated_sets(rows, False)]
    if len(ordered) < 2:
        return []
    small = [_one_set(view, name) for name in ordered]
    grid = [tag("h3", "Every set"), tag("div", *small[:SMALL_CHARTS], class_="multiples")]
    if small[SMALL_CHARTS:]:
        rest = tag("div", *small[SMALL_CHARTS:], class_="multiples")
        grid.append(details(f"{len(small) - SMALL_CHARTS} more sets", rest))
    return grid


def _one_set(view: View, name: str) -> Safe:
    rows = view.run.rows
    variants = {(a, k): _curves(view, [name], a, k, compact=True) for a in AXES for k in view.ks}
    chart = _switched(view, variants, 170, f"accuracy on {name}")
    targeted = badge("targeted") if name in evaluated_sets(rows, True) else Safe()
    points = accuracy_points(rows, view.run.main, [name])
    span = change(points[0].accuracy, points[-1].accuracy) if points else ""
    title = [tag("span", name, class_="set"), targeted, tag("span", span, class_="span")]
    return figure(joined(title), chart)
