"""How training went (reward, groups without signal, loss and the rest), and what it all cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cropi.report.data.run_curves import stage_ends
from cropi.report.data.run_data import RunData
from cropi.report.kit import charts as draw
from cropi.report.kit.charts import SMALL_MARGIN, arm_colour, stacked_costs
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    chart_label,
    controls,
    details,
    figure,
    hint,
    joined,
    switch,
    table,
    tag,
)
from cropi.report.kit.number_format import amount, duration
from cropi.report.pages.run_accuracy import legend, stage_boundary
from cropi.store.metrics import TrainRow
from cropi.study.costs import PhaseCost, phase_costs

QUANTITIES: dict[str, tuple[str, str]] = {
    "reward": ("Reward", "~g"),
    "zero_std_share": ("Groups without signal", ".0%"),
    "completion_length": ("Completion length, tokens", "~g"),
    "entropy": ("Entropy", "~g"),
    "grad_norm": ("Gradient norm", "~g"),
    "loss": ("Loss", "~g"),
    "learning_rate": ("Learning rate", "~e"),
}
"""What is drawn: the column of the train rows, its title, its d3 number format."""
SCHEDULES = ("learning_rate",)
"""Drawn as they are: a moving mean would show a warm-up that was not."""
MEAN_OF = 9
"""Steps of a moving mean."""
MAX_POINTS = 400
"""Points of a line: more than the pixels it is drawn on would only make the page larger."""
COST_MEASURES: dict[str, tuple[str, Callable[[PhaseCost], float]]] = {
    "time": ("seconds", lambda c: c.seconds),
    "FLOPs": ("FLOPs", lambda c: c.flops),
    "tokens": ("tokens", lambda c: c.tokens),
}

Line = tuple[str, str, Sequence[float], Sequence[float]]
"""Name, colour, x and y."""


def body(run: RunData, charts: Charts) -> Safe:
    """Return one small chart for each quantity the trainer logged."""
    small = [f for name in QUANTITIES if (f := _figure(run, charts, name))]
    if not small:
        return absent("No training steps yet.")
    return joined([controls(legend(run)), tag("div", *small, class_="multiples")])


def _figure(run: RunData, charts: Charts, name: str) -> Safe | None:
    title, d3_format = QUANTITIES[name]
    lines: list[Line] = []
    for i, arm in enumerate(run.arms):
        rows = run.rows.of_kind(TrainRow, arm)
        logged = {
            r.step: r.values[name] for r in rows if isinstance(r.values.get(name), int | float)
        }
        values = {step: float(value) for step, value in logged.items() if value == value}
        steps = sorted(values)[:: max(1, len(values) // MAX_POINTS)]
        if steps:
            y = [values[s] for s in steps]
            lines.append((arm, arm_colour(i), [float(s) for s in steps], y))
    if not lines:
        return None
    width = 1 if name in SCHEDULES else MEAN_OF
    drawn = training_curve(lines, stage_ends(run.rows, run.main, "steps"), d3_format, width)
    return figure(title, charts.add(drawn, 170, title))


def training_curve(
    lines: Sequence[Line], boundaries: Sequence[float], d3_format: str, width: int = MEAN_OF
) -> Figure:
    """Draw a quantity of training against steps: raw values pale, their moving mean strong."""
    data: list[Figure] = []
    for name, colour, x, y in lines:
        data.append(draw.line(x, y, f"{colour}@0.28", 1, hoverinfo="skip"))
        smooth = draw.line(x, moving_mean(y, width), colour, 2, name=chart_label(name))
        data.append(smooth | {"hovertemplate": f"%{{y:{d3_format}}}"})
    layout: Figure = {
        "showlegend": False,
        "hovermode": "x unified",
        "margin": SMALL_MARGIN,
        "xaxis": {"nticks": 5},
        "yaxis": {"nticks": 5} | _ticks(d3_format),
        "shapes": [stage_boundary(x) for x in boundaries],
    }
    values = [v for *_, y in lines for v in y]
    if max(values) == min(values):
        layout["yaxis"]["range"] = sorted([0, 2 * values[0]]) if values[0] else [-1, 1]
    return {"data": data, "layout": layout}


def _ticks(d3_format: str) -> Figure:
    """Return an axis's number format; Plotly's own exponents, unlike d3's, write zero as 0."""
    powers = {"exponentformat": "e", "showexponent": "all"}
    return powers if d3_format == "~e" else {"tickformat": d3_format}


def moving_mean(values: Sequence[float], width: int = MEAN_OF) -> list[float]:
    """Return the centred mean over `width` neighbours, fewer at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def cost(run: RunData, charts: Charts) -> Safe:
    """Return costs stacked by phase, a bar per arm, and the same in numbers."""
    ledger = phase_costs(run.rows, run.arms)
    if not ledger:
        return absent("No cost or time was recorded yet.")
    present = {name: m for name, m in COST_MEASURES.items() if any(m[1](c) for c in ledger)}
    variants = {name: _cost_bars(ledger, unit, read) for name, (unit, read) in present.items()}
    chart = Safe()
    if variants:
        height = max(v["layout"]["height"] for v in variants.values())
        chart = charts.add_variants(["measure"], variants, height, "cost by arm and phase")
    note = (
        "Shared: counted once, for all arms. Tokens are those sampled plus those run forward, "
        "with or without backward."
    )
    return joined(
        [
            controls(switch("measure", {m: m for m in present}, "measure")),
            figure("Paid by phase", chart),
            hint(note),
            details("Costs in numbers", _cost_table(ledger)),
        ]
    )


def _cost_bars(
    ledger: Sequence[PhaseCost], unit: str, read: Callable[[PhaseCost], float]
) -> Figure:
    arms = list(dict.fromkeys(c.arm for c in ledger))
    phases = dict.fromkeys(c.phase for c in ledger if read(c))
    paid = {(c.arm, c.phase): read(c) for c in ledger}
    return stacked_costs(arms, {p: [paid.get((a, p), 0.0) for a in arms] for p in phases}, unit)


def _cost_table(ledger: Sequence[PhaseCost]) -> Safe:
    tokens = ("tokens sampled", "tokens forward", "tokens backward")
    rows = [_cost_row(c.arm, c.phase, [c]) for c in ledger]
    for arm in dict.fromkeys(c.arm for c in ledger):
        rows.append(_cost_row(arm, "total", [c for c in ledger if c.arm == arm]))
    return table(("arm", "phase", "time", *tokens, "FLOPs"), rows, left=2)


def _cost_row(arm: str, phase: str, parts: Sequence[PhaseCost]) -> tuple[str, ...]:
    counts = (
        sum(c.tokens_generated for c in parts),
        sum(c.tokens_forward for c in parts),
        sum(c.tokens_backward for c in parts),
        sum(c.flops for c in parts),
    )
    seconds = sum(c.seconds for c in parts)
    return (arm, phase, duration(seconds or None), *(amount(n or None) for n in counts))
