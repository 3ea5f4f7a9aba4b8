"""The charts of a study.

Six colours serve twelve strategies and more: after every six, lines change their dash and marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropi.report.kit import charts as draw
from cropi.report.kit.charts import arm_colour, ramp_colour
from cropi.report.kit.markup import Figure, axis_labels, chart_label
from cropi.report.kit.number_format import NEVER, ratio
from cropi.study.measures import (
    LEVELS,
    REPORTED_COST_RATIO,
    Acceleration,
    Array,
    Axis,
    BreakEven,
    Curves,
    band,
    cost_accuracy_curve,
)

COLOURS = 6
DASHES = ("solid", "dash", "dot", "dashdot")
MARKS = ("circle", "square", "diamond", "triangle-up")
TEXT_COLOUR = "var(--text)"

AXIS_TITLES: dict[Axis, str] = {
    "steps": "optimizer steps",
    "flops": "FLOPs, rollouts and scoring included",
    "seconds": "seconds, rollouts and scoring included",
}
AXIS_NAMES: dict[Axis, str] = {"steps": "steps", "flops": "compute", "seconds": "time"}


@dataclass(frozen=True)
class TraceStyle:
    """How a strategy is drawn, the same in every chart."""

    colour: str
    dash: str
    mark: str

    def line(self, name: str, x: Sequence[object], y: Sequence[object], **more: Any) -> Figure:
        """Return a line in this style."""
        trace = draw.line(x, y, self.colour, dash=self.dash, name=chart_label(name))
        return trace | {"legendgroup": chart_label(name, 200)} | more


def trace_styles(strategies: Sequence[str], baseline: str) -> dict[str, TraceStyle]:
    """Give every strategy a style; the baseline is drawn in the colour of the text."""
    styles = {}
    others = [name for name in strategies if name != baseline]
    for i, name in enumerate(others):
        cycle = (i // COLOURS) % len(DASHES)
        styles[name] = TraceStyle(arm_colour(i % COLOURS), DASHES[cycle], MARKS[cycle])
    return styles | {baseline: TraceStyle(TEXT_COLOUR, "solid", "circle")}


def accuracy(
    shown: Mapping[str, Curves],
    styles: Mapping[str, TraceStyle],
    axis: Axis,
    targeted: bool = True,
) -> Figure | None:
    """Draw mean accuracy against an axis with the 95% band over seeds; None if none has it."""
    bands, lines = [], []
    for name, curves in shown.items():
        costs = curves.costs(axis)
        values = curves.targeted if targeted else curves.untargeted
        if costs is None or values is None:
            continue
        style = styles[name]
        paid = [c.mean(axis=0) for c in costs]
        x, y = _along(axis, paid, values.mean(axis=0))
        marker = {"color": style.colour, "symbol": style.mark, "size": 6}
        line = style.line(name, x.tolist(), y.tolist(), marker=marker, hovertemplate="%{y:.1%}")
        lines.append(line | {"mode": "lines+markers"})
        if (edges := band(values)) is not None:
            # An interval of two seeds may leave what an accuracy can be, and flatten the rest.
            inside = (np.clip(edge, 0, 1) for edge in edges)
            low, high = (_along(axis, paid, edge)[1].tolist() for edge in inside)
            area = draw.band(x.tolist(), low, high, style.colour, 0.1, showlegend=False)
            bands.append(area | {"legendgroup": chart_label(name, 200)})
    if not lines:
        return None
    layout: Figure = {
        "hovermode": "x unified" if axis == "steps" else "closest",
        "xaxis": {
            "title": AXIS_TITLES[axis],
            "tickformatstops": draw.AMOUNTS,
            "rangemode": "tozero",
        },
        "yaxis": {"tickformat": ".0%", "nticks": 8, "rangemode": "nonnegative"},
    }
    return {"data": [*bands, *lines], "layout": layout}


def _along(axis: Axis, paid: Sequence[Array], values: Array) -> tuple[Array, Array]:
    return (paid[0], values) if axis == "steps" else cost_accuracy_curve(paid[0], paid[1], values)


def mark_highest_level(drawn: Figure, levels: Mapping[float, Acceleration]) -> None:
    """Add a dashed line at the highest level, named in the right margin."""
    if not levels:
        return
    share = max(levels)
    at = levels[share].level
    words = f" {share:.0%} level<br> {at:.1%}"
    note = draw.note(words, 1, at, xref="paper", xanchor="left", align="left")
    drawn["layout"] |= {
        "shapes": [draw.rule(at, "y")],
        "annotations": [note],
        "margin": {"r": 72},
    }


def accelerations(
    ratios: Mapping[str, Mapping[tuple[Axis, float], Acceleration]], axis: Axis
) -> Figure:
    """Draw each strategy's ratio at each level as bars with 95% intervals; "never" is written."""
    names = axis_labels(ratios)
    data = []
    for i, share in enumerate(LEVELS):
        at_level = [by.get((axis, share)) for by in ratios.values()]
        colour = ramp_colour(i, len(LEVELS))
        data.append(_ratio_bars(f"{share:.0%} level", names, at_level, colour))
    layout: Figure = {
        "barmode": "group",
        "bargap": 0.28,
        "height": 110 + 54 * len(names),
        "shapes": [draw.rule(1, "x", colour=TEXT_COLOUR)],
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
    name: str, labels: Sequence[str], ratios: Sequence[Acceleration | None], colour: str
) -> Figure:
    values = [r.ratio if r and r.ratio is not None else None for r in ratios]
    widths = [_error_widths(r) for r in ratios]
    above, below = [high for _, high in widths], [low for low, _ in widths]
    error = draw.error_bars(above, below, "var(--text)@0.7")
    error |= {"width": 3, "visible": any(r and r.low is not None for r in ratios)}
    trace = draw.bars(labels, values, colour, horizontal=True, name=name, error_x=error)
    return trace | {
        "marker": {"color": colour},
        "text": [NEVER if v == 0 else "" for v in values],
        "textposition": "outside",
        "textfont": {"color": draw.MUTED},
        "customdata": [_hover(r) for r in ratios],
        "hovertemplate": "%{customdata}",
    }


def _error_widths(gain: Acceleration | None) -> tuple[float, float]:
    if gain is None or gain.low is None or not gain.ratio:
        return 0.0, 0.0  # "never" is written there instead; its interval shows when touched
    above = 0.0 if gain.high is None else gain.high - gain.ratio
    return max(0.0, gain.ratio - gain.low), max(0.0, above)


def _hover(gain: Acceleration | None) -> str:
    if gain is None:
        return ""
    if gain.low is None:
        return ratio(gain.ratio)
    end = "no upper end" if gain.high is None else ratio(gain.high)
    return f"{ratio(gain.ratio)}, 95% interval {ratio(gain.low)} to {end}"


def break_even_figure(points: Mapping[str, BreakEven], styles: Mapping[str, TraceStyle]) -> Figure:
    """Draw compute acceleration against c, a mark at each strategy's measured c."""
    measured = [point.measured for point in points.values()]
    low, high = min(0.2, *(m / 2 for m in measured)), 2 * max(REPORTED_COST_RATIO, *measured)
    grid = np.geomspace(low, high, 60).tolist()
    data: list[Figure] = []
    for name, point in points.items():
        style = styles[name]
        line = style.line(name, grid, [point.at(c) for c in grid], hovertemplate="%{y:.2f}x")
        marker = {"color": style.colour, "size": 10, "symbol": style.mark}
        place = draw.markers([point.measured], [point.at(point.measured)], marker)
        place |= {"legendgroup": chart_label(name, 200), "showlegend": False, "hoverinfo": "skip"}
        data += [line, place]
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    title = "c: a stage's training FLOPs / its selection FLOPs"
    labels = {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    layout: Figure = {
        "hovermode": "x unified",
        "shapes": [draw.rule(1, "y", colour=TEXT_COLOUR)],
        "xaxis": {"title": title, "type": "log", **labels},
        "yaxis": {"title": "compute acceleration", "ticksuffix": "x", "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}
