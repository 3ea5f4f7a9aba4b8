"""Charts as plain Plotly figures: colours, traces, and the charts that several pages share.

A colour is a name that the style sheet defines for light and dark mode, with opacity where `@0.2`
follows; the browser resolves it, so that one figure serves both. Arms use Okabe and Ito's colours,
sources Tol's muted set and its neighbours: both were made for colour-blind readers. Where there are
more sources than colours, bars carry their names.

Legend: K points of a line, N bars or boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.report.kit.markup import Figure, axis_labels, chart_label
from cropi.study.costs import PHASES

SOURCE_COLOURS = 12
OTHER = "other"
"""The name for all sources that have no bar to themselves."""
CARD_EDGE = {"color": "var(--card)", "width": 1.5}
MUTED = "var(--muted)"
AMOUNTS: list[Figure] = [
    {"dtickrange": [None, 0.999], "value": "~g"},
    {"dtickrange": [1, None], "value": "~s"},
]
"""Ticks of amounts: 20k where they are large, and 0.5 rather than 500m where they are small."""
SMALL_MARGIN = {"l": 46, "r": 8, "t": 6, "b": 26}


def arm_colour(index: int) -> str:
    """Return the colour of the run's arm number `index`, the same in every chart."""
    return f"var(--arm{min(index, 5)})"


def source_colour(index: int) -> str:
    """Return the colour of the source, set or phase number `index`."""
    return f"var(--s{index % SOURCE_COLOURS})"


def ramp_colour(index: int, count: int) -> str:
    """Return the colour of number `index` of `count` in an order, e.g. of stages."""
    return f"ramp({index / max(1, count - 1):.3f})"


def phase_colour(phase: str) -> str:
    """Return the colour of a phase of a run, the same for every measure."""
    return source_colour(PHASES.index(phase)) if phase in PHASES else "var(--other)"


def line(
    x: Sequence[object], y: Sequence[object], colour: str, width: float = 2.5, **more: Any
) -> Figure:
    """Return a line through K points; `more` are further keys of the trace."""
    dash = {"dash": more.pop("dash")} if "dash" in more else {}
    shape = {"shape": more.pop("shape")} if "shape" in more else {}
    style = {"color": colour, "width": width, **dash, **shape}
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": style} | more


def markers(
    x: Sequence[object], y: Sequence[object], marker: Mapping[str, Any], **more: Any
) -> Figure:
    """Return K points without a line."""
    trace: Figure = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y)}
    return trace | {"marker": dict(marker)} | more


def band(
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    opacity: float,
    **more: Any,
) -> Figure:
    """Return the area between two lines over the same K points."""
    around_x, around_y = [*x, *x[::-1]], [*high, *low[::-1]]
    area = line(around_x, around_y, colour, fill="toself", fillcolor=f"{colour}@{opacity:g}")
    return area | {"line": {"width": 0}, "hoverinfo": "skip"} | more


def bars(
    labels: Sequence[object],
    values: Sequence[object],
    colour: object,
    horizontal: bool = False,
    **more: Any,
) -> Figure:
    """Return N bars, from the left if `horizontal`; `colour` is one or one for each bar."""
    place, value = ("y", "x") if horizontal else ("x", "y")
    trace: Figure = {"type": "bar", place: list(labels), value: list(values)}
    direction = {"orientation": "h"} if horizontal else {}
    return trace | direction | {"marker": {"color": colour, "line": CARD_EDGE}} | more


def error_bars(half: Sequence[float], below: Sequence[float] | None, colour: str) -> Figure:
    """Return error bars of half-widths; `below` are those downwards, if they differ."""
    style: Figure = {"type": "data", "array": list(half), "color": colour, "thickness": 1.5}
    return style | ({} if below is None else {"symmetric": False, "arrayminus": list(below)})


def rule(at: float, axis: str, dash: str = "dash", colour: str = MUTED, **more: Any) -> Figure:
    """Return a straight line across the whole chart at a value of `axis` (x or y)."""
    other = "y" if axis == "x" else "x"
    shape: Figure = {"type": "line", f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1}
    style = {"color": colour, "width": 1.5, "dash": dash}
    return shape | {f"{other}ref": "paper", "line": style} | more


def note(words: str, x: float, y: float, **more: Any) -> Figure:
    """Return a small text at a place of the chart."""
    font = {"color": MUTED, "size": 12}
    return {"x": x, "y": y, "text": words, "showarrow": False, "font": font} | more


@dataclass(frozen=True, slots=True)
class Box:
    """The five numbers of a box plot; whiskers at the 5th and 95th percentile."""

    low: float
    q1: float
    median: float
    q3: float
    high: float
    count: int


def box_of(values: NDArray[np.floating[Any]]) -> Box | None:
    """Return the five numbers of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, q1, median, q3, high = (float(v) for v in np.percentile(finite, [5, 25, 50, 75, 95]))
    return Box(low, q1, median, q3, high, len(finite))


def boxes(
    labels: Sequence[object],
    drawn: Sequence[Box],
    colour: str,
    horizontal: bool = False,
    **more: Any,
) -> Figure:
    """Return N box plots in one colour."""
    trace: Figure = {"type": "box", ("y" if horizontal else "x"): list(labels)}
    trace |= {"orientation": "h" if horizontal else "v"}
    names = {"lowerfence": "low", "q1": "q1", "median": "median", "q3": "q3", "upperfence": "high"}
    trace |= {key: [getattr(box, name) for box in drawn] for key, name in names.items()}
    trace |= {"line": {"color": "var(--text)@0.75", "width": 1.4}, "fillcolor": f"{colour}@0.6"}
    return trace | more


def stacked_layout(rows: int, height: int, per_row: int) -> Figure:
    """Return the layout of horizontal stacked bars, the first row on top."""
    place = {"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True}
    return {
        "barmode": "stack",
        "bargap": 0.22,
        "uniformtext": {"mode": "hide", "minsize": 10},
        "yaxis": place,
        "legend": {"traceorder": "normal"},
        "height": height + per_row * rows,
    }


def stacked_shares(
    rows: Mapping[str, Mapping[str, int]],
    colours: Mapping[str, str],
    *,
    named: bool = False,
    height: int = 90,
    per_row: int = 26,
) -> Figure:
    """Draw bars of shares, one per row, stacked by the names in `colours`; `named`: inside, too."""
    totals = {row: sum(counts.values()) or 1 for row, counts in rows.items()}
    labels = axis_labels(rows)
    inside: Figure = {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
    inside |= {"textfont": {"color": "var(--on-source)"}}
    data = []
    for name, colour in colours.items():
        shares = [counts.get(name, 0) / totals[row] for row, counts in rows.items()]
        trace = bars(labels, shares, colour, horizontal=True, name=chart_label(name))
        trace |= {"customdata": [counts.get(name, 0) for counts in rows.values()]}
        trace |= {"hovertemplate": "%{x:.1%} (%{customdata} prompts)"}
        if named:
            trace |= {"text": [chart_label(name, 16)] * len(rows), **inside}
        data.append(trace)
    layout = stacked_layout(len(rows), height, per_row)
    layout |= {"xaxis": {"tickformat": ".0%", "range": [0, 1]}}
    return {"data": data, "layout": layout | {"margin": {"r": 24}}}  # there is room for "100%"


def composition(rows: Mapping[str, Mapping[str, int]], sources: Sequence[str]) -> Figure:
    """Draw shares by source, one bar per row (the pool, each stage)."""
    colours = {name: source_colour(i) for i, name in enumerate(sources)}
    if any(OTHER in counts for counts in rows.values()):
        colours[OTHER] = "var(--other)"
    return stacked_shares(rows, colours, named=True, height=110, per_row=44)


def stacked_costs(rows: Sequence[str], phases: Mapping[str, Sequence[float]], unit: str) -> Figure:
    """Draw what each row paid, stacked by phase; `phases[name]` is aligned with `rows`."""
    labels = axis_labels(rows)
    data = [
        bars(labels, amounts, phase_colour(phase), horizontal=True, name=chart_label(phase))
        | {"hovertemplate": "%{x:.3s} " + unit}
        for phase, amounts in phases.items()
    ]
    layout = stacked_layout(len(rows), 110, 44)
    return {"data": data, "layout": layout | {"xaxis": {"title": unit, "tickformatstops": AMOUNTS}}}
