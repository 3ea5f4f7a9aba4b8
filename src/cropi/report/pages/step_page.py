"""The page of `cropi diagnose step`."""

from __future__ import annotations

from cropi.diagnostics.step import (
    BANDS,
    RATIO_OK,
    Band,
    BandSummary,
    StepOutcome,
    StepReport,
    TargetSteps,
)
from cropi.report.kit import charts as draw
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    chart_label,
    controls,
    figure,
    hint,
    joined,
    pair,
    switch,
    table,
    tag,
)
from cropi.report.kit.number_format import (
    DASH,
    fixed,
    learning_rate,
    number,
    with_interval,
)
from cropi.report.pages.diagnosis_page import About, Card, page

COLOURS: dict[Band, str] = {
    "top": "var(--arm2)",
    "middle": "var(--arm4)",
    "bottom": "var(--arm1)",
    "random": "var(--arm0)",
    "single": "var(--arm5)",
}
NAMES: dict[Band, str] = {
    "top": "most influential",
    "middle": "middle",
    "bottom": "least influential",
    "random": "random",
    "single": "single prompts",
}
COLUMNS = (
    "set",
    "rate",
    "prompts",
    "predicted change of J",
    "actual change of J",
    "actual/predicted",
    "sign as predicted",
)


def render(report: StepReport, about: About) -> str:
    """Return the page as one HTML document."""
    charts = Charts()
    sections = [
        ("change", "Predicted and actual change", _changes(report, charts)),
        ("rates", "How far the prediction reaches", _rates(report, charts)),
        ("numbers", "All steps", _table(report)),
    ]
    return page("step", report.verdict, _cards(report), sections, charts, about, report.notes)


def rows(report: StepReport) -> list[list[str]]:
    """Return every band at every learning rate as cells under COLUMNS."""
    return [
        [target.name, learning_rate(rate), *_cells(row)]
        for target in report.targets
        for rate in report.learning_rates
        for row in target.summary(rate)
    ]


def _cells(row: BandSummary) -> tuple[str, ...]:
    return (
        NAMES[row.band],
        with_interval(row.predicted),
        with_interval(row.actual),
        fixed(row.ratio, 2),
        f"{row.agreeing} of {row.steps}",
    )


def _cards(report: StepReport) -> list[Card]:
    cards = []
    for target in report.targets[:2]:
        top = next(row for row in target.summary(report.main) if row.band == "top")
        name = "actual over predicted, most influential prompts"
        cards.append((fixed(top.ratio, 2), name, target.name))
        correlation = target.correlation(report.main)
        if correlation is not None:
            name = "correlation of predicted and actual, single prompts"
            cards.append((number(correlation), name, target.name))
    agreeing, steps = map(
        sum, zip(*(t.agreement(report.main) for t in report.targets), strict=True)
    )
    cards.append((f"{agreeing} of {steps}", "steps moved J as the sign said", _rate(report)))
    reached = [t.reach(report.learning_rates) for t in report.targets]
    least = None if None in reached else min(r for r in reached if r is not None)
    name = f"largest rate with actual/predicted in {RATIO_OK[0]:g} to {RATIO_OK[1]:g}"
    cards.append((DASH if least is None else learning_rate(least), name, "all sets"))
    return cards


def _rate(report: StepReport) -> str:
    return f"at learning rate {learning_rate(report.main)}"


def _changes(report: StepReport, charts: Charts) -> Safe:
    pick = switch("set", {t.name: t.name for t in report.targets}, "validation set")
    bars = {t.name: _band_bars(t, report.main) for t in report.targets}
    points = {t.name: _scatter(t, report.main) for t in report.targets}
    two = pair(
        figure("By band", charts.add_variants(["set"], bars, 360, "change of J by band")),
        figure("Step by step", charts.add_variants(["set"], points, 360, "predicted and actual")),
    )
    note = (
        f"Every step goes along a band's mean gradient and is equally long: {_rate(report)}, "
        f"{number(report.main * report.parameters**0.5, 2)} in all over {report.parameters:,} "
        "weights, about what one Adam step moves. Predicted is the inner product of the step with "
        "the validation gradient, actual is J evaluated again with the weights moved. Bars of "
        "single bands carry the 95% interval over validation prompts, random ones over the bands."
    )
    return joined([controls(pick), two, hint(note)])


def _band_bars(target: TargetSteps, rate: float) -> Figure:
    summary = target.summary(rate)
    labels = [NAMES[row.band] for row in summary]
    pale = [f"{COLOURS[row.band]}@0.35" for row in summary]
    predicted = draw.bars(labels, [row.predicted.mean for row in summary], pale, name="predicted")
    strong = [COLOURS[row.band] for row in summary]
    actual = draw.bars(labels, [row.actual.mean for row in summary], strong, name="actual")
    error = draw.error_bars([row.actual.half for row in summary], None, "var(--text)@0.6")
    layout: Figure = {
        "barmode": "group",
        "bargap": 0.3,
        "showlegend": False,
        "xaxis": {"type": "category", "showgrid": False},
        "yaxis": {"title": "change of J (pale: predicted)", "zerolinecolor": draw.MUTED},
    }
    predicted |= {"hovertemplate": "%{y:.3~g} predicted<extra></extra>"}
    actual |= {"hovertemplate": "%{y:.3~g} actual<extra></extra>", "error_y": error | {"width": 5}}
    return {"data": [predicted, actual], "layout": layout}


def _scatter(target: TargetSteps, rate: float) -> Figure:
    data = [_points(band, target.at(rate, band)) for band in ("single", *BANDS)]
    steps = [s for s in target.steps if s.learning_rate == rate]
    ends = [min(s.predicted for s in steps), max(s.predicted for s in steps)]
    diagonal = draw.line(ends, ends, draw.MUTED, 1.5, dash="dash", hoverinfo="skip")
    diagonal |= {"showlegend": False}
    title = "predicted change of J (dashed: exactly as predicted)"
    layout: Figure = {
        "xaxis": {"title": title, "zeroline": True},
        "yaxis": {"title": "actual", "zeroline": True},
    }
    return {"data": [diagonal, *(trace for trace in data if trace["x"])], "layout": layout}


def _points(band: Band, steps: list[StepOutcome]) -> Figure:
    small = band == "single"
    marker: Figure = {
        "color": f"{COLOURS[band]}@{0.65 if small else 1}",
        "size": 7 if small else 11,
    }
    marker |= {"line": {"color": "var(--card)", "width": 1}}
    x, y = [s.predicted for s in steps], [s.actual for s in steps]
    hover = "%{x:.3~g} predicted, %{y:.3~g} actual"
    return draw.markers(x, y, marker, name=chart_label(NAMES[band]), hovertemplate=hover)


def _rates(report: StepReport, charts: Charts) -> Safe:
    if len(report.learning_rates) < 2:
        return hint(
            "One learning rate was tried. Give several, separated by commas, to see where the "
            "linear prediction of influence breaks down."
        )
    variants = {t.name: _reach(t, report.learning_rates) for t in report.targets}
    chart = charts.add_variants(["set"], variants, 320, "actual over predicted by learning rate")
    note = (
        "Influence is a first-order prediction: at 1 a step does exactly what was predicted. Where "
        "a line leaves the band, steps are too long for one gradient to predict, and training at "
        "that rate relies on computing fresh gradients."
    )
    return joined([figure("Actual over predicted change", chart), hint(note)])


def _reach(target: TargetSteps, rates: tuple[float, ...]) -> Figure:
    data = []
    for band in ("top", "random", "bottom"):
        summaries = [r for rate in rates for r in target.summary(rate) if r.band == band]
        defined = [r for r in summaries if r.ratio is not None]
        x, y = [r.learning_rate for r in defined], [r.ratio for r in defined]
        trace = draw.line(x, y, COLOURS[band], name=NAMES[band], hovertemplate="%{y:.2f}")
        data.append(trace | {"mode": "lines+markers", "marker": {"size": 8}})
    good: Figure = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    good |= {"y0": RATIO_OK[0], "y1": RATIO_OK[1], "fillcolor": "var(--good)@0.25"}
    ticks = {"tickvals": list(rates), "ticktext": [learning_rate(rate) for rate in rates]}
    layout: Figure = {
        "shapes": [good | {"line": {"width": 0}}],
        "hovermode": "x unified",
        "xaxis": {"title": "learning rate", "type": "log", **ticks},
        "yaxis": {"title": "actual / predicted", "zeroline": True, "range": [-0.5, 2.5]},
    }
    return {"data": data, "layout": layout}


def _table(report: StepReport) -> Safe:
    about = [
        (
            target.name,
            f"{target.prompts}",
            number(target.objective),
            number(target.gradient_norm),
            number(target.correlation(report.main)),
        )
        for target in report.targets
    ]
    header = ("set", "prompts", "J before", "norm of its gradient", "correlation, single prompts")
    return joined(
        [table(COLUMNS, rows(report), left=3), tag("h3", "The sets"), table(header, about)]
    )
