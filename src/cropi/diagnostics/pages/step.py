"""The page of `cropi diagnose step`."""

from __future__ import annotations

from cropi.diagnostics.pages.frame import About, number, page, with_interval
from cropi.diagnostics.step import (
    BANDS,
    CLOSE,
    Band,
    BandSummary,
    StepOutcome,
    StepReport,
    TargetSteps,
)
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    figure,
    hint,
    joined,
    plain,
    switch,
    table,
    tag,
)
from cropi.report.wording import DASH

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
    """Every band at every learning rate as cells under COLUMNS."""
    return [
        [target.name, f"{rate:.0e}".replace("e-0", "e-"), *_cells(row)]
        for target in report.targets
        for rate in report.learning_rates
        for row in target.summary(rate)
    ]


def _cells(row: BandSummary) -> tuple[str, ...]:
    return (
        NAMES[row.band],
        with_interval(row.predicted),
        with_interval(row.actual),
        DASH if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.agreeing} of {row.steps}",
    )


def _cards(report: StepReport) -> list[tuple[str, str, str]]:
    cards = []
    for target in report.targets[:2]:
        top = next(row for row in target.summary(report.main) if row.band == "top")
        told = "actual over predicted, most influential prompts"
        cards.append((DASH if top.ratio is None else f"{top.ratio:.2f}", told, target.name))
        correlation = target.correlation(report.main)
        if correlation is not None:
            told = "correlation of predicted and actual, single prompts"
            cards.append((number(correlation), told, target.name))
    agreeing, steps = map(
        sum, zip(*(t.agreement(report.main) for t in report.targets), strict=True)
    )
    cards.append((f"{agreeing} of {steps}", "steps moved J as the sign said", _rate(report.main)))
    reached = [t.reach(report.learning_rates) for t in report.targets]
    least = None if None in reached else min(r for r in reached if r is not None)
    told = f"largest rate with actual/predicted in {CLOSE[0]:g} to {CLOSE[1]:g}"
    cards.append((DASH if least is None else f"{least:.0e}".replace("e-0", "e-"), told, "all sets"))
    return cards


def _rate(value: float) -> str:
    return f"at learning rate {value:.0e}".replace("e-0", "e-")


def _changes(report: StepReport, charts: Charts) -> Safe:
    pick = switch("set", {t.name: t.name for t in report.targets}, "validation set")
    bars = {t.name: _band_bars(t, report.main) for t in report.targets}
    points = {t.name: _scatter(t, report.main) for t in report.targets}
    pair = [
        figure("By band", charts.add_variants(["set"], bars, 360, "change of J by band")),
        figure("Step by step", charts.add_variants(["set"], points, 360, "predicted and actual")),
    ]
    told = (
        f"Every step goes along a band's mean gradient and is equally long: {_rate(report.main)}, "
        f"{number(report.main * report.parameters**0.5, 2)} in all over {report.parameters:,} "
        "weights, about what one Adam step moves. Predicted is the inner product of the step with "
        "the validation gradient, actual is J evaluated again with the weights moved. Bars of "
        "single bands carry the 95% interval over validation prompts, random ones over the bands."
    )
    return joined(
        [tag("div", pick, class_="controls"), tag("div", *pair, class_="pair"), hint(told)]
    )


def _band_bars(target: TargetSteps, rate: float) -> Figure:
    summary = target.summary(rate)
    labels = [NAMES[row.band] for row in summary]
    predicted: Figure = {
        "type": "bar",
        "name": "predicted",
        "x": labels,
        "y": [row.predicted.mean for row in summary],
        "marker": {"color": [f"{COLOURS[row.band]}@0.35" for row in summary]},
        "hovertemplate": "%{y:.3~g} predicted<extra></extra>",
    }
    actual: Figure = {
        "type": "bar",
        "name": "actual",
        "x": labels,
        "y": [row.actual.mean for row in summary],
        "marker": {"color": [COLOURS[row.band] for row in summary]},
        "error_y": {
            "type": "data",
            "array": [row.actual.half for row in summary],
            "color": "var(--text)@0.6",
            "thickness": 1.5,
            "width": 5,
        },
        "hovertemplate": "%{y:.3~g} actual<extra></extra>",
    }
    layout: Figure = {
        "barmode": "group",
        "bargap": 0.3,
        "showlegend": False,
        "xaxis": {"type": "category", "showgrid": False},
        "yaxis": {"title": "change of J (pale: predicted)", "zerolinecolor": "var(--muted)"},
    }
    return {"data": [predicted, actual], "layout": layout}


def _scatter(target: TargetSteps, rate: float) -> Figure:
    data = [_points(band, target.at(rate, band)) for band in ("single", *BANDS)]
    steps = [s for s in target.steps if s.learning_rate == rate]
    ends = [min(s.predicted for s in steps), max(s.predicted for s in steps)]
    line: Figure = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"}
    line |= {"line": {"color": "var(--muted)", "width": 1.5, "dash": "dash"}, "showlegend": False}
    layout: Figure = {
        "xaxis": {
            "title": "predicted change of J (dashed: exactly as predicted)",
            "zeroline": True,
        },
        "yaxis": {"title": "actual", "zeroline": True},
    }
    return {"data": [line, *(trace for trace in data if trace["x"])], "layout": layout}


def _points(band: Band, steps: list[StepOutcome]) -> Figure:
    small = band == "single"
    marker = {"color": f"{COLOURS[band]}@{0.65 if small else 1}", "size": 7 if small else 11}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(NAMES[band]),
        "x": [s.predicted for s in steps],
        "y": [s.actual for s in steps],
        "marker": marker | {"line": {"color": "var(--card)", "width": 1}},
        "hovertemplate": "%{x:.3~g} predicted, %{y:.3~g} actual",
    }


def _rates(report: StepReport, charts: Charts) -> Safe:
    if len(report.learning_rates) < 2:
        return hint(
            "One learning rate was tried. Give several, by commas, to see where the straight line "
            "that influence assumes bends."
        )
    variants = {t.name: _reach(t, report.learning_rates) for t in report.targets}
    chart = charts.add_variants(["set"], variants, 320, "actual over predicted by learning rate")
    told = (
        "Influence is a first-order prediction: at 1 a step does exactly what was predicted. Where "
        "a line leaves the band, steps are too long for one gradient to foresee, and training at "
        "that rate relies on taking fresh gradients."
    )
    return joined([figure("Actual over predicted change", chart), hint(told)])


def _reach(target: TargetSteps, rates: tuple[float, ...]) -> Figure:
    data = []
    for band in ("top", "random", "bottom"):
        found = [r for rate in rates for r in target.summary(rate) if r.band == band]
        telling = [r for r in found if r.ratio is not None]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": NAMES[band],
                "x": [r.learning_rate for r in telling],
                "y": [r.ratio for r in telling],
                "line": {"color": COLOURS[band], "width": 2.5},
                "marker": {"size": 8},
                "hovertemplate": "%{y:.2f}",
            }
        )
    good: Figure = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    good |= {"y0": CLOSE[0], "y1": CLOSE[1], "fillcolor": "var(--good)@0.25", "line": {"width": 0}}
    layout: Figure = {
        "shapes": [good],
        "hovermode": "x unified",
        "xaxis": {"title": "learning rate", "type": "log", "tickvals": list(rates)},
        "yaxis": {"title": "actual / predicted", "zeroline": True, "range": [-0.5, 2.5]},
    }
    layout["xaxis"]["ticktext"] = [f"{rate:.0e}".replace("e-0", "e-") for rate in rates]
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
