"""Lines as plain Plotly figures: accuracy on three axes, and the course of training.

A colour is a name of `palette`, with opacity where `@0.2` follows; the browser resolves it against
the style sheet, so that one figure serves light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence

from cropi.report.markup import Figure, plain
from cropi.report.numbers import Axis, Curve

AXIS_TITLES: dict[Axis, str] = {
    "steps": "optimizer steps",
    "tokens": "tokens, rollouts and scoring included",
    "seconds": "seconds, rollouts and scoring included",
}


def accuracy(
    curves: Sequence[tuple[str, str, Curve]],
    axis: Axis,
    boundaries: Sequence[float],
    compact: bool = False,
) -> Figure:
    """Draw accuracy with a band of one standard error; `curves` holds (name, colour, curve)."""
    data = [_band(colour, c) for _, colour, c in curves]
    data += [_line(name, colour, c, compact) for name, colour, c in curves]
    layout: Figure = {
        "showlegend": False,
        "yaxis": {"tickformat": ".0%", "nticks": 4 if compact else 7},
        "xaxis": {
            "title": "" if compact else AXIS_TITLES[axis],
            "tickformat": "~s",
            "rangemode": "tozero",
        },
        "shapes": [_vertical(x) for x in boundaries],
        "hovermode": "x unified",
    }
    if compact:
        layout |= {"margin": {"l": 40, "r": 8, "t": 6, "b": 26}}
        layout["xaxis"]["nticks"] = 5
    return {"data": data, "layout": layout}


def _line(name: str, colour: str, curve: Curve, compact: bool) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(name),
        "x": curve.x,
        "y": curve.y,
        "line": {"color": colour, "width": 2 if compact else 3},
        "marker": {"color": colour, "size": 4 if compact else 7},
        "hovertemplate": "%{y:.1%}",
    }


def _band(colour: str, curve: Curve) -> Figure:
    above = [y + e for y, e in zip(curve.y, curve.error, strict=True)]
    below = [y - e for y, e in zip(curve.y, curve.error, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": curve.x + curve.x[::-1],
        "y": above + below[::-1],
        "fill": "toself",
        "fillcolor": f"{colour}@0.16",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _vertical(x: float) -> Figure:
    line = {"color": "var(--line)", "width": 1.5, "dash": "dot"}
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
        "layer": "below",
    }


def mark_level(figure: Figure, level: float, name: str) -> None:
    """Add the level to reach: a dashed line with its name."""
    line = {"color": "var(--muted)", "width": 1.5, "dash": "dash"}
    figure["layout"]["shapes"].append(
        {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": level, "y1": level, "line": line}
    )
    figure["layout"]["annotations"] = [
        {
            "x": 1,
            "xref": "paper",
            "y": level,
            "xanchor": "right",
            "yanchor": "bottom",
            "text": plain(name, 60),
            "showarrow": False,
            "font": {"color": "var(--muted)", "size": 12},
        }
    ]


def mark_reached(figure: Figure, x: float, level: float, name: str, colour: str) -> None:
    """Add a ring where the level is first reached, and a line down to its place on the axis."""
    marker = {"color": "var(--card)", "size": 13, "line": {"color": colour, "width": 3}}
    ring = {"type": "scatter", "mode": "markers", "x": [x], "y": [level], "marker": marker}
    figure["data"].append(ring | {"hoverinfo": "skip"})
    # The corner below the curves is empty, on the side where there is room for the words.
    widest = max(v for trace in figure["data"] for v in trace["x"])
    figure["layout"].setdefault("annotations", []).append(
        {
            "x": x,
            "y": 0.02,
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": "left" if x < 0.6 * widest else "right",
            "text": f"<b>{plain(name, 40)}</b>",
            "showarrow": False,
            "font": {"color": colour, "size": 14},
        }
    )
    lowest = min(v for trace in figure["data"] for v in trace["y"])
    line = {"color": colour, "width": 1.5}
    drop = {"type": "line", "x0": x, "x1": x, "y0": lowest, "y1": level, "line": line}
    figure["layout"]["shapes"].append(drop)


def course(
    lines: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    boundaries: Sequence[float],
    number: str,
) -> Figure:
    """Draw a quantity of training against steps: raw values pale, their moving mean strong.

    `number` is a d3 format.
    """
    data: list[Figure] = []
    for name, colour, x, y in lines:
        pale = {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "hoverinfo": "skip"}
        data.append(pale | {"line": {"color": f"{colour}@0.28", "width": 1}})
        strong = {
            "type": "scatter",
            "mode": "lines",
            "name": plain(name),
            "x": list(x),
            "y": moving_mean(y),
        }
        data.append(
            strong | {"line": {"color": colour, "width": 2}, "hovertemplate": f"%{{y:{number}}}"}
        )
    values = [v for *_, y in lines for v in y]
    constant = max(values) == min(values)
    layout: Figure = {
        "showlegend": False,
        "hovermode": "x unified",
        "margin": {"l": 46, "r": 8, "t": 6, "b": 26},
        "xaxis": {"nticks": 5},
        "yaxis": {"nticks": 5, "tickformat": number},
        "shapes": [_vertical(b) for b in boundaries],
    }
    if constant:
        layout["yaxis"]["range"] = sorted([0, 2 * values[0]]) if values[0] else [-1, 1]
    return {"data": data, "layout": layout}


def moving_mean(values: Sequence[float], width: int = 9) -> list[float]:
    """Return the centred mean over `width` neighbours, fewer at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]
