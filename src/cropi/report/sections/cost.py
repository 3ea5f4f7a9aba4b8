"""Time and cost by phase and arm: seconds, FLOPs and tokens, everything counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cropi.report import bars
from cropi.report.costs import Cost, costs
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    details,
    figure,
    hint,
    joined,
    switch,
    table,
    tag,
)
from cropi.report.reading import RunData
from cropi.report.wording import amount, duration

MEASURES: dict[str, tuple[str, Callable[[Cost], float]]] = {
    "time": ("seconds", lambda c: c.seconds),
    "FLOPs": ("FLOPs", lambda c: c.flops),
    "tokens": ("tokens", lambda c: c.tokens),
}


def body(run: RunData, charts: Charts) -> Safe:
    """Return stacked bars by arm, and the bill."""
    bill = costs(run.metrics, run.timings, run.arms)
    if not bill:
        return absent("No cost or time was recorded yet.")
    present = {name: m for name, m in MEASURES.items() if any(m[1](c) for c in bill)}
    variants = {name: _bars(bill, unit, measure) for name, (unit, measure) in present.items()}
    height = max(v["layout"]["height"] for v in variants.values()) if variants else 0
    chart = (
        charts.add_variants(["measure"], variants, height, "cost by arm and phase")
        if variants
        else Safe()
    )
    controls = tag("div", switch("measure", {m: m for m in present}, "measure"), class_="controls")
    note = (
        "Shared: paid once, whatever the arm. Tokens are those sampled plus those run forward, "
        "with or without backward."
    )
    return joined(
        [
            controls,
            figure("Paid by phase", chart),
            hint(note),
            details("The bill in numbers", _table(bill)),
        ]
    )


def _bars(bill: Sequence[Cost], unit: str, measure: Callable[[Cost], float]) -> Figure:
    arms = list(dict.fromkeys(c.arm for c in bill))
    phases = dict.fromkeys(c.phase for c in bill if measure(c))
    paid = {(c.arm, c.phase): measure(c) for c in bill}
    return bars.bills(arms, {p: [paid.get((a, p), 0.0) for a in arms] for p in phases}, unit)


def _table(bill: Sequence[Cost]) -> Safe:
    header = (
        "arm",
        "phase",
        "time",
        "tokens sampled",
        "tokens forward",
        "tokens backward",
        "FLOPs",
    )
    rows = [_row(c.arm, c.phase, [c]) for c in bill]
    rows += [
        _row(arm, "total", [c for c in bill if c.arm == arm])
        for arm in dict.fromkeys(c.arm for c in bill)
    ]
    return table(header, rows, left=2)


def _row(arm: str, phase: str, parts: Sequence[Cost]) -> tuple[str, ...]:
    counts = (
        sum(c.tokens_generated for c in parts),
        sum(c.tokens_forward for c in parts),
        sum(c.tokens_backward for c in parts),
        sum(c.flops for c in parts),
    )
    seconds = sum(c.seconds for c in parts)
    return (arm, phase, duration(seconds or None), *(amount(n or None) for n in counts))
