"""How training went: reward, groups without signal, loss and the rest, against steps."""

from __future__ import annotations

from cropi.report import curves
from cropi.report.markup import Charts, Safe, absent, figure, joined, tag
from cropi.report.numbers import of_kind, stage_ends
from cropi.report.palette import arm_colour
from cropi.report.reading import RunData
from cropi.report.sections.accuracy import legend

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

LONGEST = 400
"""Points a line keeps: more than the pixels it is drawn on would only weigh."""


def body(run: RunData, charts: Charts) -> Safe:
    """Return one small chart for each quantity the trainer logged."""
    small = [f for name in QUANTITIES if (f := _figure(run, charts, name))]
    if not small:
        return absent("No training steps yet.")
    return joined(
        [tag("div", legend(run), class_="controls"), tag("div", *small, class_="multiples")]
    )


def _figure(run: RunData, charts: Charts, name: str) -> Safe | None:
    title, number = QUANTITIES[name]
    ends = stage_ends(run.metrics, run.timings, run.main, "steps")
    lines = []
    for i, arm in enumerate(run.arms):
        rows = [r for r in of_kind(run.metrics, "train", arm) if r.get(name) is not None]
        known = {int(r["step"]): float(r[name]) for r in rows if r[name] == r[name]}
        steps = sorted(known)[:: max(1, len(known) // LONGEST)]
        if steps:
            lines.append((arm, arm_colour(i), [float(s) for s in steps], [known[s] for s in steps]))
    if not lines:
        return None
    drawn = curves.course(lines, ends, number)
    return figure(title, charts.add(drawn, 170, title))
