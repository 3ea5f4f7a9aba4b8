"""Bars and boxes as plain Plotly figures: selections, influence, the pool, costs.

A colour is a name of `palette`, with opacity where `@0.2` follows; the browser resolves it against
the style sheet, so that one figure serves light and dark mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cropi.report.choices import OTHER, Box, Novelty
from cropi.report.costs import PHASES
from cropi.report.markup import Figure, places, plain
from cropi.report.palette import source_colour, stage_colour
from cropi.report.rollouts import KINDS

KIND_COLOURS = {
    "informative": source_colour(0),
    "all right": "var(--good)",
    "all wrong": "var(--bad)",
    "all the same": source_colour(2),
    "too few judged": "var(--other)",
}
"""Colours of the reasons for which a prompt has a gradient or none."""

GAP = {"color": "var(--card)", "width": 1.5}


def composition(rows: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> Figure:
    """Draw bars of shares, one a row (the pool, each stage), stacked by source."""
    totals = {row: sum(counts.values()) or 1 for row, counts in rows.items()}
    shown = [*names, OTHER] if any(OTHER in c for c in rows.values()) else list(names)
    data = [_source_bar(name, i, rows, totals) for i, name in enumerate(shown)]
    layout = _stacked_layout(len(rows))
    return {"data": data, "layout": layout | {"xaxis": {"tickformat": ".0%", "range": [0, 1]}}}


def _source_bar(
    name: str, index: int, rows: Mapping[str, Mapping[str, int]], totals: Mapping[str, int]
) -> Figure:
    colour = "var(--other)" if name == OTHER else source_colour(index)
    return {
        "type": "bar",
        "orientation": "h",
        "name": plain(name),
        "y": places(rows),
        "x": [counts.get(name, 0) / totals[row] for row, counts in rows.items()],
        "customdata": [counts.get(name, 0) for counts in rows.values()],
        "text": [plain(name, 16)] * len(rows),
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"color": "var(--on-source)"},
        "marker": {"color": colour, "line": GAP},
        "hovertemplate": "%{x:.1%} (%{customdata} prompts)",
    }


def _stacked_layout(rows: int) -> Figure:
    return {
        "barmode": "stack",
        "bargap": 0.22,
        "uniformtext": {"mode": "hide", "minsize": 10},
        "yaxis": {
            "autorange": "reversed",
            "type": "category",
            "showgrid": False,
            "automargin": True,
        },
        "legend": {"traceorder": "normal"},
        "height": 110 + 44 * rows,
    }


def pass_rates(pool: Sequence[float], stages: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of prompts at each pass rate: the pool as a filled ground, stages as lines."""
    ticks = [i / max(1, len(pool) - 1) for i in range(len(pool))]
    data: list[Figure] = [
        {
            "type": "bar",
            "name": "pool",
            "x": ticks,
            "y": list(pool),
            "marker": {"color": "var(--other)@0.45"},
            "hovertemplate": "%{y:.1%}",
        }
    ]
    for i, (name, shares) in enumerate(stages.items()):
        colour = stage_colour(i, len(stages))
        data.append(_step_line(name, ticks, shares, colour))
    layout = {
        "bargap": 0,
        "hovermode": "x unified",
        "xaxis": {"title": "pass rate under the rollouts", "tickformat": ".0%"},
        "yaxis": {"title": "share of prompts", "tickformat": ".0%", "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def _step_line(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2.5, "shape": "hvh"},
        "hovertemplate": "%{y:.1%}",
    }


def freshness(stages: Mapping[str, Novelty]) -> Figure:
    """Draw for each stage which prompts were there before."""
    parts = {
        "in the previous stage too": (source_colour(5), [n.again for n in stages.values()]),
        "in an earlier stage": (source_colour(0), [n.earlier for n in stages.values()]),
        "never before": (source_colour(1), [n.fresh for n in stages.values()]),
    }
    data = [
        {
            "type": "bar",
            "name": name,
            "x": places(stages),
            "y": counts,
            "marker": {"color": colour, "line": GAP},
            "hovertemplate": "%{y} prompts",
        }
        for name, (colour, counts) in parts.items()
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": {"type": "category"},
        "hovermode": "x unified",
    }
    return {
        "data": data,
        "layout": layout | {"yaxis": {"title": "prompts"}, "legend": {"traceorder": "normal"}},
    }


def boxes(
    groups: Mapping[str, Mapping[str, Box]], first: int = 0, horizontal: bool = False
) -> Figure:
    """Draw box plots from their five numbers: a colour for each group, a place for each name.

    `first` is the number of the first group, so that a target keeps its colour.
    """
    data = []
    for i, (group, named) in enumerate(groups.items()):
        drawn = list(named.values())
        labels = places(named)
        colour = source_colour(first + i)
        data.append(_box_trace(group, drawn, labels, colour, horizontal))
    value = {"zeroline": True, "zerolinecolor": "var(--muted)", "title": "cosine with the target"}
    place = {"type": "category", "showgrid": False, "automargin": True}
    axes: Figure = (
        {"xaxis": value, "yaxis": place | {"autorange": "reversed"}}
        if horizontal
        else {"xaxis": place, "yaxis": value}
    )
    return {"data": data, "layout": {"boxmode": "group", "showlegend": len(groups) > 1, **axes}}


def _box_trace(
    group: str, drawn: Sequence[Box], labels: Sequence[str], colour: str, horizontal: bool
) -> Figure:
    return {
        "type": "box",
        "name": plain(group),
        "orientation": "h" if horizontal else "v",
        ("y" if horizontal else "x"): list(labels),
        "lowerfence": [b.low for b in drawn],
        "q1": [b.q1 for b in drawn],
        "median": [b.median for b in drawn],
        "q3": [b.q3 for b in drawn],
        "upperfence": [b.high for b in drawn],
        "line": {"color": "var(--text)@0.75", "width": 1.4},
        "fillcolor": f"{colour}@0.6",
        "hoverformat": ".3f",
    }


def signal(rows: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw for each source which of its prompts have a gradient, and why the others have none."""
    totals = {name: sum(counts.values()) or 1 for name, counts in rows.items()}
    present = [k for k in KINDS if any(counts.get(k) for counts in rows.values())]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            "y": places(rows),
            "x": [counts.get(kind, 0) / totals[name] for name, counts in rows.items()],
            "customdata": [counts.get(kind, 0) for counts in rows.values()],
            "marker": {"color": KIND_COLOURS[kind], "line": GAP},
            "hovertemplate": "%{x:.1%} (%{customdata} prompts)",
        }
        for kind in present
    ]
    layout = _stacked_layout(len(rows)) | {"height": 90 + 26 * len(rows)}
    return {"data": data, "layout": layout | {"xaxis": {"tickformat": ".0%", "range": [0, 1]}}}


def phase_colour(phase: str) -> str:
    """Return the colour of a phase, the same for every measure."""
    return source_colour(PHASES.index(phase)) if phase in PHASES else "var(--other)"


def bills(rows: Sequence[str], phases: Mapping[str, Sequence[float]], unit: str) -> Figure:
    """Draw what each arm paid, stacked by phase; `phases[name]` is aligned with `rows`."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(phase),
            "y": places(rows),
            "x": list(values),
            "marker": {"color": phase_colour(phase), "line": GAP},
            "hovertemplate": "%{x:.3s} " + unit,
        }
        for phase, values in phases.items()
    ]
    return {
        "data": data,
        "layout": _stacked_layout(len(rows)) | {"xaxis": {"title": unit, "tickformat": "~s"}},
    }
