"""The charts of a study as plain Plotly figures.

A colour is a name of `cropi.report.palette`, with opacity where `@0.2` follows. Six colours serve
twelve strategies and more: every six, lines change their dash and their marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cropi.report.markup import Figure, places, plain
from cropi.report.palette import arm_colour, stage_colour
from cropi.study.measures import (
    ASKED_RATIO,
    LEVELS,
    Array,
    Axis,
    BreakEven,
    Curves,
    Speed,
    band,
    knots,
)
from cropi.study.summary import NEVER, times

COLOURS = 6
DASHES = ("solid", "dash", "dot", "dashdot")
MARKS = ("circle", "square", "diamond", "triangle-up")
BASELINE = "var(--text)"

AXIS_TITLES: dict[Axis, str] = {
    "steps": "optimizer steps",
    "flops": "FLOPs, rollouts and scoring included",
    "seconds": "seconds, rollouts and scoring included",
}
AXIS_NAMES: dict[Axis, str] = {"steps": "steps", "flops": "compute", "seconds": "time"}


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn, the same in every chart."""

    colour: str
    dash: str
    mark: str


def looks(strategies: Sequence[str], baseline: str) -> dict[str, Look]:
    """Give every strategy a look of its own; the baseline is drawn in the colour of the text."""
    found = {}
    others = [name for name in strategies if name != baseline]
    for i, name in enumerate(others):
        cycle = (i // COLOURS) % len(DASHES)
        found[name] = Look(arm_colour(i % COLOURS), DASHES[cycle], MARKS[cycle])
    return found | {baseline: Look(BASELINE, "solid", "circle")}


def accuracy(
    shown: Mapping[str, Curves], look: Mapping[str, Look], axis: Axis, targeted: bool = True
) -> Figure | None:
    """Draw mean accuracy against an axis with the 95% band over seeds; None if none has it."""
    bands, lines = [], []
    for name, found in shown.items():
        costs = found.costs(axis)
        values = found.targeted if targeted else found.untargeted
        if costs is None or values is None:
            continue
        paid = [c.mean(axis=0) for c in costs]
        x, y = _along(axis, paid, values.mean(axis=0))
        lines.append(_line(name, look[name], x, y))
        if (edges := band(values)) is not None:
            low, high = (_along(axis, paid, edge)[1] for edge in edges)
            bands.append(_band(name, look[name], x, low, high))
    if not lines:
        return None
    layout: Figure = {
        "hovermode": "x unified" if axis == "steps" else "closest",
        "xaxis": {"title": AXIS_TITLES[axis], "tickformat": "~s", "rangemode": "tozero"},
        "yaxis": {"tickformat": ".0%", "nticks": 8},
    }
    return {"data": [*bands, *lines], "layout": layout}


def _along(axis: Axis, paid: Sequence[Array], values: Array) -> tuple[Array, Array]:
    return (paid[0], values) if axis == "steps" else knots(paid[0], paid[1], values)


def _line(name: str, look: Look, x: Array, y: Array) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(name),
        "legendgroup": plain(name, 200),
        "x": x.tolist(),
        "y": y.tolist(),
        "line": {"color": look.colour, "width": 2.5, "dash": look.dash},
        "marker": {"color": look.colour, "symbol": look.mark, "size": 6},
        "hovertemplate": "%{y:.1%}",
    }


def _band(name: str, look: Look, x: Array, low: Array, high: Array) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": plain(name, 200),
        "showlegend": False,
        "x": [*x.tolist(), *x[::-1].tolist()],
        "y": [*high.tolist(), *low[::-1].tolist()],
        "fill": "toself",
        "fillcolor": f"{look.colour}@0.1",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def mark_levels(drawn: Figure, levels: Mapping[float, Speed]) -> None:
    """Add a dashed line at the highest level, named in the right margin."""
    if not levels:
        return
    share = max(levels)
    at = levels[share].level
    line: Figure = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": at, "y1": at}
    line["line"] = {"color": "var(--muted)", "width": 1.5, "dash": "dash"}
    note: Figure = {"x": 1, "xref": "paper", "y": at, "xanchor": "left", "showarrow": False}
    note |= {"text": f" {share:.0%} level<br> {at:.1%}", "align": "left"}
    note["font"] = {"color": "var(--muted)", "size": 12}
    drawn["layout"] |= {"shapes": [line], "annotations": [note], "margin": {"r": 72}}


def accelerations(speeds: Mapping[str, Mapping[tuple[Axis, float], Speed]], axis: Axis) -> Figure:
    """Draw each strategy's ratio at each level as bars with 95% intervals; "never" is written."""
    names = places(speeds)
    data = []
    for i, share in enumerate(LEVELS):
        found = [by.get((axis, share)) for by in speeds.values()]
        data.append(_ratio_bars(f"{share:.0%} level", names, found, stage_colour(i, len(LEVELS))))
    one: Figure = {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper"}
    one["line"] = {"color": "var(--text)", "width": 1.5, "dash": "dash"}
    layout: Figure = {
        "barmode": "group",
        "bargap": 0.28,
        "height": 110 + 54 * len(names),
        "shapes": [one],
        "xaxis": {
            "title": f"the baseline's {AXIS_NAMES[axis]} / the strategy's",
            "ticksuffix": "x",
            "rangemode": "tozero",
        },
        "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
        "legend": {"traceorder": "normal"},
    }
    return {"data": data, "layout": layout}


def _ratio_bars(
    name: str, labels: Sequence[str], found: Sequence[Speed | None], colour: str
) -> Figure:
    values = [s.ratio if s and s.ratio is not None else None for s in found]
    spans = [_span(s) for s in found]
    error: Figure = {"type": "data", "symmetric": False, "color": "var(--text)@0.7"}
    error |= {"array": [high for _, high in spans], "arrayminus": [low for low, _ in spans]}
    error |= {"visible": any(s and s.low is not None for s in found)}
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(labels),
        "x": values,
        "text": [NEVER if v == 0 else "" for v in values],
        "textposition": "outside",
        "textfont": {"color": "var(--muted)"},
        "customdata": [_told(s) for s in found],
        "marker": {"color": colour},
        "error_x": error | {"thickness": 1.5, "width": 3},
        "hovertemplate": "%{customdata}",
    }


def _span(found: Speed | None) -> tuple[float, float]:
    if found is None or found.low is None or found.high is None or not found.ratio:
        return 0.0, 0.0  # "never" is written there instead; its interval shows when touched
    return max(0.0, found.ratio - found.low), max(0.0, found.high - found.ratio)


def _told(found: Speed | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return times(found.ratio)
    return f"{times(found.ratio)}, 95% interval {times(found.low)} to {times(found.high)}"


def prices(found: Mapping[str, BreakEven], look: Mapping[str, Look]) -> Figure:
    """Draw compute acceleration against c, a mark at each strategy's measured c."""
    measured = [e.measured for e in found.values()]
    grid = np.geomspace(min(0.2, *(m / 2 for m in measured)), 2 * max(ASKED_RATIO, *measured), 60)
    data: list[Figure] = []
    for name, even in found.items():
        shared: Figure = {"type": "scatter", "legendgroup": plain(name, 200)}
        line = {"color": look[name].colour, "width": 2.5, "dash": look[name].dash}
        curve: Figure = {"x": grid.tolist(), "y": [even.at(float(c)) for c in grid], "line": line}
        curve |= {"mode": "lines", "name": plain(name), "hovertemplate": "%{y:.2f}x"}
        marker = {"color": look[name].colour, "size": 10, "symbol": look[name].mark}
        point: Figure = {"x": [even.measured], "y": [even.at(even.measured)], "marker": marker}
        point |= {"mode": "markers", "showlegend": False, "hoverinfo": "skip"}
        data += [shared | curve, shared | point]
    one: Figure = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": 1, "y1": 1}
    one["line"] = {"color": "var(--text)", "width": 1.5, "dash": "dash"}
    title = "c: a stage's training FLOPs / its selection FLOPs"
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    layout: Figure = {
        "hovermode": "x unified",
        "shapes": [one],
        "xaxis": {"title": title, "type": "log", "tickvals": ticks},
        "yaxis": {"title": "compute acceleration", "ticksuffix": "x", "rangemode": "tozero"},
    }
    layout["xaxis"]["ticktext"] = [f"{t:g}" for t in ticks]
    return {"data": data, "layout": layout}
