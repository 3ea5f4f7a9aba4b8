"""The page of `cropi diagnose fidelity`: the paper's figure, the Pareto front, and all numbers."""

from __future__ import annotations

from collections.abc import Sequence

from cropi.diagnostics.fidelity import Cost, FidelityReport, SketchFidelity, pareto
from cropi.diagnostics.pages.frame import About, number, page, rule, share, with_interval
from cropi.report.markup import Charts, Figure, Safe, figure, hint, joined, plain, table, tag
from cropi.report.wording import DASH, amount

COLUMNS = (
    "sketch",
    "ratio",
    "dims",
    "precision@k",
    "fused",
    "Spearman",
    "error of cosines",
    "ms a prompt",
    "bytes a prompt",
    "",
)
MARKS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "x")
PAPER = "sparse"
"""The sketch of the paper's figure."""
REPORTED = {0.01: 0.51, 0.15: 0.77, 1.0: 0.13}
"""Precision@10% by ratio that the paper reports of Qwen2.5-1.5B."""


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
    """Every sketch as cells under COLUMNS, the families together."""
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


def _cards(report: FidelityReport) -> list[tuple[str, str, str]]:
    best = report.recommended
    cards = []
    if best is not None:
        top = f"precision@{report.share:.0%}"
        cards += [
            (share(best.precision.mean), f"{top}, recommended sketch", best.spec.label),
            (share(best.fused.mean), "of the fused selection found", best.spec.label),
            (number(best.spearman.mean), "rank correlation with exact", best.spec.label),
            (f"{number(1000 * best.seconds)} ms", "a prompt, sketched", "gradient included"),
            (f"{amount(best.bytes)}B", "a prompt, stored", "float16"),
        ]
    told = f"{report.coordinates:,} coordinates"
    cards.append((f"{number(1000 * report.exact_seconds)} ms", "a prompt, exact", told))
    return cards


def _families(report: FidelityReport) -> dict[str, tuple[str, str]]:
    """Colour and mark of each family of sketches, by name."""
    names = list(dict.fromkeys(s.spec.name for s in report.sketches))
    order = [*filter(lambda n: n != PAPER, names)]
    order = [*order, PAPER] if PAPER in names else order
    colours = ["var(--arm0)", "var(--arm2)", "var(--arm3)", "var(--arm4)", "var(--arm5)"]
    found = {
        n: (colours[i % len(colours)], MARKS[1 + i % (len(MARKS) - 1)]) for i, n in enumerate(order)
    }
    if PAPER in found:
        found[PAPER] = ("var(--arm1)", "circle")
    return {name: found[name] for name in names}


def _front(report: FidelityReport, charts: Charts) -> Safe:
    time = charts.add(_scatter(report, "seconds"), 430, "precision against seconds a prompt")
    size = charts.add(_scatter(report, "bytes"), 430, "precision against bytes a prompt")
    pair = [
        figure("Precision against time", time),
        figure("Precision against storage", size),
    ]
    told = (
        f"Precision@{report.share:.0%}: the share of exact influence's top {report.share:.0%} that "
        "the sketch's top holds, mean over targets and seeds; bars are 95% intervals over "
        f"{report.seeds} seeds. The line joins sketches that no other beats at that cost. Time "
        "includes making the gradient; the dashed line is exact influence, which stores nothing "
        "and needs the model again for every new target."
    )
    return joined([tag("div", *pair, class_="pair"), hint(told)])


def _scatter(report: FidelityReport, kind: Cost) -> Figure:
    scale = 1000.0 if kind == "seconds" else 1.0
    front = pareto(report.sketches, kind)
    line: Figure = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [scale * s.cost(kind) for s in front],
        "y": [s.precision.mean for s in front],
        "line": {"color": "var(--muted)", "width": 1.5, "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    data = [line]
    families = _families(report)
    # Every sketch of a size stands at the same bytes: families step aside a little.
    aside = dict.fromkeys(families, 1.0)
    if kind == "bytes":
        aside = {n: 1.06 ** (i - len(families) // 2) for i, n in enumerate(families)}
    for name, (colour, mark) in families.items():
        own = [s for s in report.sketches if s.spec.name == name]
        x = [aside[name] * scale * s.cost(kind) for s in own]
        data.append(_points(name, own, x, colour, mark))
    if (best := report.recommended) is not None:
        data.append(_ring(best, aside[best.spec.name] * scale * best.cost(kind)))
    title = "ms a prompt" if kind == "seconds" else "bytes a prompt, float16"
    layout: Figure = {
        "hovermode": "closest",
        "xaxis": {"title": title},
        "yaxis": {"title": "precision", "tickformat": ".0%"},
    }
    if kind == "seconds":
        shape, _ = rule(1000 * report.exact_seconds, "x")
        layout |= {"shapes": [shape]}
        layout["xaxis"] |= {"rangemode": "tozero"}
    else:
        sizes = sorted({s.bytes for s in report.sketches})
        ticks = {"tickvals": sizes, "ticktext": [f"{amount(b)}" for b in sizes]}
        layout["xaxis"] |= {"type": "log", **ticks}
    return {"data": data, "layout": layout}


def _points(
    name: str, own: Sequence[SketchFidelity], x: Sequence[float], colour: str, mark: str
) -> Figure:
    dims = sorted({s.spec.dim for s in own})
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": list(x),
        "y": [s.precision.mean for s in own],
        "text": [
            plain(f"{s.spec.label}, {1000 * s.seconds:.3g} ms, {s.bytes:,} bytes", 60) for s in own
        ],
        "error_y": _error(own, f"{colour}@0.45"),
        "marker": {
            "color": colour,
            "symbol": mark,
            "size": [7 + 3 * dims.index(s.spec.dim) for s in own],
            "line": {"color": "var(--card)", "width": 1},
        },
        "hovertemplate": "%{text}: %{y:.1%}<extra></extra>",
    }


def _error(sketches: Sequence[SketchFidelity], colour: str) -> Figure:
    """The 95% intervals of precision, as far as a share can go."""
    precisions = [s.precision for s in sketches]
    bars: Figure = {"type": "data", "symmetric": False, "color": colour}
    bars |= {"array": [min(p.half, 1 - p.mean) for p in precisions]}
    bars |= {"arrayminus": [min(p.half, p.mean) for p in precisions]}
    return bars | {"thickness": 1.5, "width": 3}


def _ring(best: SketchFidelity, x: float) -> Figure:
    marker = {"color": "rgba(0,0,0,0)", "size": 22, "line": {"color": "var(--text)", "width": 2}}
    ring: Figure = {"type": "scatter", "mode": "markers", "name": "recommended"}
    return ring | {"x": [x], "y": [best.precision.mean], "marker": marker, "hoverinfo": "skip"}


def _paper(report: FidelityReport, charts: Charts) -> Safe:
    own = [s for s in report.sketches if s.spec.name == PAPER and s.spec.ratio is not None]
    if len({s.spec.ratio for s in own}) < 2:
        return tag(
            "p", "Fewer than two ratios of the sparse sketch were measured.", class_="absent"
        )
    precision = _against_ratio(own, "precision")
    precision["data"].append(_reported())
    seconds = _against_ratio(own, "seconds")
    shape, _ = rule(1000 * report.exact_seconds, "y")
    seconds["layout"]["shapes"] = [shape]
    pair = [
        figure("Precision", charts.add(precision, 360, "precision against the sparse ratio")),
        figure("Time a prompt", charts.add(seconds, 360, "time against the sparse ratio")),
    ]
    told = (
        "The paper's sketch keeps a random share of all coordinates, then projects. Dotted: what "
        "the paper reports of a model of 1.5 billion parameters, whose fall from 77% at ratio 0.15 "
        "to 13% at 1.0 no sketch with 64-bit places shows. Dashed: exact influence's time."
    )
    return joined([tag("div", *pair, class_="pair"), hint(told)])


def _against_ratio(own: Sequence[SketchFidelity], measure: str) -> Figure:
    dims = sorted({s.spec.dim for s in own})
    data = []
    for n, dim in enumerate(dims):
        line = sorted((s for s in own if s.spec.dim == dim), key=lambda s: s.spec.ratio or 0)
        colour = f"ramp({n / max(1, len(dims) - 1):.3f})"
        trace: Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{dim:,} dimensions",
            "x": [s.spec.ratio for s in line],
            "line": {"color": colour, "width": 2.5},
            "marker": {"size": 8, "color": colour},
        }
        if measure == "precision":
            trace |= {"y": [s.precision.mean for s in line], "hovertemplate": "%{y:.1%}"}
            trace |= {"error_y": _error(line, colour)}
        else:
            trace |= {"y": [1000 * s.seconds for s in line], "hovertemplate": "%{y:.3~g} ms"}
        data.append(trace)
    ratios = sorted({s.spec.ratio or 0 for s in own})
    ticks = {"tickvals": ratios, "ticktext": [f"{r:g}" for r in ratios]}
    value: Figure = (
        {"title": "precision", "tickformat": ".0%", "rangemode": "tozero"}
        if measure == "precision"
        else {"title": "ms", "rangemode": "tozero"}
    )
    layout: Figure = {
        "hovermode": "x unified",
        "xaxis": {"title": "share of coordinates kept", "type": "log", **ticks},
        "yaxis": value,
    }
    return {"data": data, "layout": layout}


def _reported() -> Figure:
    """The paper's own figures, of another model."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "in the paper, another model",
        "x": list(REPORTED),
        "y": list(REPORTED.values()),
        "line": {"color": "var(--muted)", "width": 1.5, "dash": "dot"},
        "marker": {"size": 6, "color": "var(--muted)"},
        "hovertemplate": "%{y:.0%}",
    }


def _table(report: FidelityReport) -> Safe:
    cells = [
        (
            *row[:-1],
            tag("span", row[-1], class_="badge good" if row[-1] == "recommended" else "badge")
            if row[-1]
            else "",
        )
        for row in rows(report)
    ]
    parts = [table(COLUMNS, cells), *_by_target(report)]
    told = (
        f"Means over targets with 95% intervals over {report.seeds} seeds; k is {report.share:.0%} "
        f"of {report.prompts:,} prompts. Fused: overlap of the prompts that reciprocal-rank fusion "
        "selects. Front: no other sketch is as precise for less."
    )
    return joined([parts[0], hint(told), *parts[1:]])


def _by_target(report: FidelityReport) -> list[Safe]:
    if len(report.targets) < 2:
        return []
    names = list(report.targets)
    header = ("sketch", *(f"{n} ({report.targets[n]} prompts)" for n in names))
    found = [
        (s.spec.label, *(with_interval(s.precisions[n], 100, "%") for n in names))
        for s in report.sketches
    ]
    return [tag("details", tag("summary", "Precision by target"), table(header, found))]
