"""The page of `cropi diagnose fidelity`: the paper's figure, the Pareto front, and all numbers."""

from __future__ import annotations

from collections.abc import Sequence

from cropi.diagnostics.fidelity import Cost, FidelityReport, SketchFidelity, pareto
from cropi.report.kit import charts as draw
from cropi.report.kit.charts import ramp_colour, rule
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    badge,
    chart_label,
    details,
    figure,
    hint,
    joined,
    pair,
    table,
)
from cropi.report.kit.number_format import DASH, amount, number, percent, with_interval
from cropi.report.pages.diagnosis_page import About, Card, page

COLUMNS = (
    "sketch",
    "ratio",
    "dims",
    "precision@k",
    "fused",
    "Spearman",
    "error of cosines",
    "ms per prompt",
    "bytes per prompt",
    "",
)
MARKS = ("diamond", "square", "triangle-up", "cross", "star", "hexagon", "x")
COLOURS = ("var(--arm0)", "var(--arm2)", "var(--arm3)", "var(--arm4)", "var(--arm5)")
PAPER = "sparse"
"""The sketch of the paper's figure."""
PAPER_STYLE = ("var(--arm1)", "circle")
REPORTED = {0.01: 0.51, 0.15: 0.77, 1.0: 0.13}
"""Precision@10% by ratio that the paper reports for Qwen2.5-1.5B."""


def render(report: FidelityReport, about: About) -> str:
    """Return the page as one HTML document."""
    charts = Charts()
    sections = [
        ("front", "Which sketch for which budget", _front(report, charts)),
        ("ratio", "Precision and cost against the sparse ratio", _paper(report, charts)),
        ("numbers", "All sketches", _table(report)),
    ]
    return page("fidelity", report.verdict, _cards(report), sections, charts, about, report.notes)


def rows(report: FidelityReport) -> list[list[str]]:
    """Return every sketch as cells under COLUMNS, the families together."""
    return [_row(report, s) for s in report.sketches]


def _row(report: FidelityReport, s: SketchFidelity) -> list[str]:
    fronts = [kind for kind in ("seconds", "bytes") if s in pareto(report.sketches, kind)]
    best = report.recommended is s
    return [
        s.spec.name,
        DASH if s.spec.ratio is None else f"{s.spec.ratio:g}",
        f"{s.spec.dim:,}",
        with_interval(s.precision, 100, "%"),
        with_interval(s.fused, 100, "%"),
        with_interval(s.spearman),
        with_interval(s.error),
        number(1000 * s.seconds),
        f"{s.bytes:,}",
        "recommended" if best else " ".join(f"front ({kind})" for kind in fronts),
    ]


def _cards(report: FidelityReport) -> list[Card]:
    best = report.recommended
    cards = []
    if best is not None:
        top = f"precision@{report.share:.0%}"
        cards += [
            (percent(best.precision.mean), f"{top}, recommended sketch", best.spec.label),
            (percent(best.fused.mean), "of the fused selection found", best.spec.label),
            (number(best.spearman.mean), "rank correlation with exact", best.spec.label),
            (f"{number(1000 * best.seconds)} ms", "per prompt, sketched", "gradient included"),
            (f"{amount(best.bytes)}B", "per prompt, stored", "float16"),
        ]
    note = f"{report.coordinates:,} coordinates"
    cards.append((f"{number(1000 * report.exact_seconds)} ms", "per prompt, exact", note))
    return cards


def _families(report: FidelityReport) -> dict[str, tuple[str, str]]:
    """Return colour and mark of each family of sketches, by name."""
    names = list(dict.fromkeys(s.spec.name for s in report.sketches))
    others = [name for name in names if name != PAPER]
    styles = {
        name: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, name in enumerate(others)
    }
    return {name: styles.get(name, PAPER_STYLE) for name in names}


def _front(report: FidelityReport, charts: Charts) -> Safe:
    time = charts.add(_scatter(report, "seconds"), 430, "precision against seconds per prompt")
    size = charts.add(_scatter(report, "bytes"), 430, "precision against bytes per prompt")
    note = (
        f"Precision@{report.share:.0%}: the share of exact influence's top {report.share:.0%} that "
        "the sketch's top holds, mean over targets and seeds; bars are 95% intervals over "
        f"{report.seeds} seeds. The line joins sketches that no other beats at that cost. Time "
        "includes making the gradient; the dashed line is exact influence, which stores nothing "
        "and needs the model again for every new target."
    )
    two = pair(figure("Precision against time", time), figure("Precision against storage", size))
    return joined([two, hint(note)])


def _scatter(report: FidelityReport, kind: Cost) -> Figure:
    scale = 1000.0 if kind == "seconds" else 1.0
    front = pareto(report.sketches, kind)
    x, y = [scale * s.cost(kind) for s in front], [s.precision.mean for s in front]
    steps = draw.line(x, y, draw.MUTED, 1.5, shape="hv", name="front", hoverinfo="skip")
    data = [steps | {"showlegend": False}]
    families = _families(report)
    # All sketches of a size have the same bytes: families are moved apart a little.
    shift = dict.fromkeys(families, 1.0)
    if kind == "bytes":
        shift = {n: 1.06 ** (i - len(families) // 2) for i, n in enumerate(families)}
    for name, style in families.items():
        members = [s for s in report.sketches if s.spec.name == name]
        places = [shift[name] * scale * s.cost(kind) for s in members]
        data.append(_points(name, members, places, *style))
    if (best := report.recommended) is not None:
        data.append(_ring(best, shift[best.spec.name] * scale * best.cost(kind)))
    axis, shapes = _cost_axis(report, kind)
    precision = {"title": "precision", "tickformat": ".0%"}
    layout: Figure = {"hovermode": "closest", "xaxis": axis, "yaxis": precision}
    return {"data": data, "layout": layout | shapes}


def _cost_axis(report: FidelityReport, kind: Cost) -> tuple[Figure, Figure]:
    """Return the axis of a cost, and what marks exact influence on it."""
    if kind == "seconds":
        shapes = {"shapes": [rule(1000 * report.exact_seconds, "x")]}
        return {"title": "ms per prompt", "rangemode": "tozero"}, shapes
    sizes = sorted({s.bytes for s in report.sketches})
    ticks = {"tickvals": sizes, "ticktext": [amount(b) for b in sizes]}
    return {"title": "bytes per prompt, float16", "type": "log", **ticks}, {}


def _points(
    name: str, members: Sequence[SketchFidelity], x: Sequence[float], colour: str, mark: str
) -> Figure:
    dims = sorted({s.spec.dim for s in members})
    marker = {
        "color": colour,
        "symbol": mark,
        "size": [7 + 3 * dims.index(s.spec.dim) for s in members],
        "line": {"color": "var(--card)", "width": 1},
    }
    hover = [f"{s.spec.label}, {1000 * s.seconds:.3g} ms, {s.bytes:,} bytes" for s in members]
    trace = draw.markers(x, [s.precision.mean for s in members], marker, name=chart_label(name))
    return trace | {
        "text": [chart_label(words, 60) for words in hover],
        "error_y": _precision_error(members, f"{colour}@0.45"),
        "hovertemplate": "%{text}: %{y:.1%}<extra></extra>",
    }


def _precision_error(sketches: Sequence[SketchFidelity], colour: str) -> Figure:
    """Return the 95% intervals of precision, cut off at 0 and 1."""
    above = [min(s.precision.half, 1 - s.precision.mean) for s in sketches]
    below = [min(s.precision.half, s.precision.mean) for s in sketches]
    return draw.error_bars(above, below, colour) | {"width": 3}


def _ring(best: SketchFidelity, x: float) -> Figure:
    marker = {"color": "rgba(0,0,0,0)", "size": 22, "line": {"color": "var(--text)", "width": 2}}
    place = [best.precision.mean]
    return draw.markers([x], place, marker, name="recommended", hoverinfo="skip")


def _paper(report: FidelityReport, charts: Charts) -> Safe:
    members = [s for s in report.sketches if s.spec.name == PAPER and s.spec.ratio is not None]
    if len({s.spec.ratio for s in members}) < 2:
        return absent("Fewer than two ratios of the sparse sketch were measured.")
    precision = _against_ratio(members, "precision")
    precision["data"].append(_reported())
    seconds = _against_ratio(members, "seconds")
    seconds["layout"]["shapes"] = [rule(1000 * report.exact_seconds, "y")]
    note = (
        "The paper's sketch keeps a random share of all coordinates, then projects. Dotted: what "
        "the paper reports of a model of 1.5 billion parameters; no sketch with 64-bit indices "
        "shows its fall from 77% at ratio 0.15 to 13% at 1.0. Dashed: exact influence's time."
    )
    two = pair(
        figure("Precision", charts.add(precision, 360, "precision against the sparse ratio")),
        figure("Time per prompt", charts.add(seconds, 360, "time against the sparse ratio")),
    )
    return joined([two, hint(note)])


def _against_ratio(members: Sequence[SketchFidelity], measure: str) -> Figure:
    dims = sorted({s.spec.dim for s in members})
    data = []
    for n, dim in enumerate(dims):
        ordered = sorted((s for s in members if s.spec.dim == dim), key=lambda s: s.spec.ratio or 0)
        colour = ramp_colour(n, len(dims))
        x = [s.spec.ratio for s in ordered]
        if measure == "precision":
            trace = draw.line(x, [s.precision.mean for s in ordered], colour)
            trace |= {"hovertemplate": "%{y:.1%}", "error_y": _precision_error(ordered, colour)}
        else:
            trace = draw.line(x, [1000 * s.seconds for s in ordered], colour)
            trace |= {"hovertemplate": "%{y:.3~g} ms"}
        trace |= {"mode": "lines+markers", "name": f"{dim:,} dimensions"}
        data.append(trace | {"marker": {"size": 8, "color": colour}})
    ratios = sorted({s.spec.ratio or 0 for s in members})
    ticks = {"tickvals": ratios, "ticktext": [f"{r:g}" for r in ratios]}
    value: Figure = {"title": "ms", "rangemode": "tozero"}
    if measure == "precision":
        value |= {"title": "precision", "tickformat": ".0%"}
    layout: Figure = {
        "hovermode": "x unified",
        "xaxis": {"title": "share of coordinates kept", "type": "log", **ticks},
        "yaxis": value,
    }
    return {"data": data, "layout": layout}


def _reported() -> Figure:
    """Return the paper's own figures, of another model."""
    line = draw.line(list(REPORTED), list(REPORTED.values()), draw.MUTED, 1.5, dash="dot")
    marker = {"size": 6, "color": draw.MUTED}
    about = {"name": "in the paper, another model", "hovertemplate": "%{y:.0%}"}
    return line | {"mode": "lines+markers", "marker": marker} | about


def _table(report: FidelityReport) -> Safe:
    cells = [(*row[:-1], _remark(row[-1])) for row in rows(report)]
    note = (
        f"Means over targets with 95% intervals over {report.seeds} seeds; k is {report.share:.0%} "
        f"of {report.prompts:,} prompts. Fused: overlap of the prompts that reciprocal-rank fusion "
        "selects. Front: no other sketch is as precise for less."
    )
    return joined([table(COLUMNS, cells), hint(note), *_by_target(report)])


def _remark(words: str) -> object:
    return badge(words, "good" if words == "recommended" else "") if words else ""


def _by_target(report: FidelityReport) -> list[Safe]:
    if len(report.targets) < 2:
        return []
    names = list(report.targets)
    header = ("sketch", *(f"{n} ({report.targets[n]} prompts)" for n in names))
    precisions = [
        (s.spec.label, *(with_interval(s.precisions[n], 100, "%") for n in names))
        for s in report.sketches
    ]
    return [details("Precision by target", table(header, precisions))]
