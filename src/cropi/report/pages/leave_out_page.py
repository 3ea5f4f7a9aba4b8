"""The page of `cropi diagnose loo`."""

from __future__ import annotations

from cropi.diagnostics.leave_out import LEFT_OUT, BlockOutcome, LeaveOutReport, TargetLeaveOut
from cropi.estimation.intervals import Interval
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
    switch,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, fixed, number, percent, with_interval
from cropi.report.pages.diagnosis_page import About, Card, page
from cropi.report.pages.step_page import COLOURS, NAMES

COLUMNS = ("set", "left out", "prompts", "predicted (relative)", "change of accuracy")


def render(report: LeaveOutReport, about: About) -> str:
    """Return the page as one HTML document."""
    charts = Charts()
    sections = [
        ("blocks", "Block by block", _blocks(report, charts)),
        ("numbers", "All retrainings", _tables(report)),
    ]
    return page("loo", report.verdict, _cards(report), sections, charts, about, report.notes)


def rows(report: LeaveOutReport) -> list[list[str]]:
    """Return every block as each set sees it, as cells under COLUMNS."""
    return [
        [target.name, _name(block), f"{block.prompts:,}", number(block.predicted), _points(block)]
        for target in report.targets
        for block in target.blocks
    ]


def _name(block: BlockOutcome) -> str:
    chosen_for = f" for {block.chosen_for}" if block.chosen_for else ""
    return NAMES[block.band] + chosen_for


def _points(block: BlockOutcome) -> str:
    return f"{100 * block.actual:+z.1f} points"


def _cards(report: LeaveOutReport) -> list[Card]:
    cards = []
    for target in report.targets[:3]:
        correlation = target.correlation
        name = "correlation of predicted and actual change"
        cards.append((fixed(correlation.mean, 2), name, _of(target)))
    noise = max((target.whole.half for target in report.targets), default=0.0)
    name = "95% interval of the mean after training on the whole pool"
    cards.append((f"± {percent(noise)}" if noise else DASH, name, f"{report.repeats} times"))
    return cards


def _of(target: TargetLeaveOut) -> str:
    return f"{target.name}, {len(target.blocks)} blocks"


def _blocks(report: LeaveOutReport, charts: Charts) -> Safe:
    pick = switch("set", {t.name: t.name for t in report.targets}, "validation set")
    variants = {target.name: _scatter(target) for target in report.targets}
    note = (
        f"Each point is a policy trained for {report.steps:,} steps without one block of the "
        f"pool's {report.pool:,} prompts. Predicted is the change of the pool's mean gradient "
        "along the validation gradient, which the change of accuracy should be proportional to; "
        "the band is the 95% interval of training on the whole pool again."
    )
    chart = charts.add_variants(["set"], variants, 380, "predicted and actual change by block")
    return joined([controls(pick), figure("Predicted and actual change", chart), hint(note)])


def _scatter(target: TargetLeaveOut) -> Figure:
    data = []
    for band in LEFT_OUT:
        blocks = [b for b in target.blocks if b.band == band]
        marker: Figure = {"color": COLOURS[band], "size": 11}
        marker |= {"line": {"color": "var(--card)", "width": 1}}
        x, y = [b.predicted for b in blocks], [b.actual for b in blocks]
        hover = "%{x:.3~g} predicted, %{y:+.1%}"
        named = draw.markers(x, y, marker, name=chart_label(NAMES[band]), hovertemplate=hover)
        data.append(named | {"text": [chart_label(_name(b)) for b in blocks]})
    noise: Figure = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    noise |= {"y0": -target.whole.half, "y1": target.whole.half, "fillcolor": "var(--muted)@0.15"}
    layout: Figure = {
        "shapes": [noise | {"line": {"width": 0}}],
        "xaxis": {"title": "predicted, relative", "zeroline": True},
        "yaxis": {"title": "change of accuracy", "zeroline": True, "tickformat": "+.0%"},
    }
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def _correlation(value: Interval) -> str:
    interval = "" if value.low is None else f" [{fixed(value.low, 2)}, {fixed(value.high, 2)}]"
    return fixed(value.mean, 2) + interval


def _tables(report: LeaveOutReport) -> Safe:
    about = [
        (
            target.name,
            percent(target.start),
            with_interval(target.whole),
            _correlation(target.correlation),
            "yes" if target.in_order else "no",
        )
        for target in report.targets
    ]
    header = ("set", "start policy", "whole pool", "correlation", "top hurts more than bottom")
    return joined([table(header, about), tag("h3", "Blocks"), table(COLUMNS, rows(report), left=2)])
