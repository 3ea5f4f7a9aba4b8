"""Figures as SVG: targeted accuracy of a regime against steps and compute, and the overview.

The same numbers give the same bytes: no date, a fixed salt for the ids, text drawn as paths in the
font that comes with matplotlib. A strategy has the same style in every regime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from cropi.store.files import atomic_write
from cropi.study.measures import MAIN_LEVEL, Acceleration, cost_accuracy_curve
from study_report.results import Regime

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cropi",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "path.simplify": False,
}


@dataclass(frozen=True)
class LineStyle:
    """How a strategy is drawn."""

    colour: str
    dash: str = "-"
    width: float = 1.5


# Okabe and Ito's colours for those that every regime has; the others are told apart by dashes too.
STYLES = {
    "full": LineStyle("#000000", width=2.2),
    "cropi": LineStyle("#d55e00", width=2.6),
    "ranking": LineStyle("#7b3294", width=2.2),
    "paper": LineStyle("#0072b2", width=2.0),
    "learnability": LineStyle("#009e73", width=1.8),
    "random": LineStyle("#8a8a8a", width=1.8),
    "one_shot": LineStyle("#0072b2", "--"),
    "gradalign": LineStyle("#cc79a7"),
    "learnalign": LineStyle("#cc79a7", "--"),
    "pass_rate": LineStyle("#009e73", "--"),
    "dapo": LineStyle("#000000", "--"),
    "oracle": LineStyle("#e69f00", ":", 2.0),
}
SPARE = (LineStyle("#56b4e9"), LineStyle("#b2182b"), LineStyle("#a6761d"), LineStyle("#4d9221"))
"""Of strategies and variants without a style of their own, in turn; then dashed, then dotted."""
DASHES = ("-", "--", ":", "-.")


def line_styles(names: list[str]) -> dict[str, LineStyle]:
    """Return every strategy's style."""
    others = [name for name in names if name not in STYLES]
    spare = {
        name: LineStyle(SPARE[i % len(SPARE)].colour, DASHES[i // len(SPARE) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {name: STYLES.get(name) or spare[name] for name in names}


def draw(regime: Regime, path: Path) -> None:
    """Write a regime's figure; the mean over seeds, with its 95% band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 4.3), layout="constrained")
        steps, compute = figure.subplots(1, 2, sharey=True)
        styles = line_styles(regime.order)
        for place, (name, style) in enumerate(styles.items()):
            # Our method lies on top, then the baseline, then the others.
            above = 90 if name == regime.method else 80 - place
            _curve(steps, name, style, regime.strategies[name]["curves"], "steps", above)
            _curve(compute, name, style, regime.strategies[name]["curves"], "flops", above)
        _furnish(regime, steps, compute)
        handles, labels = steps.get_legend_handles_labels()
        columns = min(len(labels), 6)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.6)
        _save(figure, path)


def draw_overview(regime: Regime, path: Path) -> None:
    """Write the figure of the README: our method and the baseline against training steps."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, above in ((regime.baseline, 80), (regime.method, 90)):
            style = line_styles([name])[name]
            _curve(axes, name, style, regime.strategies[name]["curves"], "steps", above)
            _mark_level(axes, style, regime.acceleration(name))
        axes.set(xlabel="training steps", ylabel="targeted accuracy", xlim=(0, None))
        axes.margins(x=0.02)
        _tick_whole_percents(axes)
        axes.legend(loc="lower right")
        _save(figure, path)


def _tick_whole_percents(axes: Axes) -> None:
    """Ticks never at 2.5%, which would read as 2% or 3%."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _mark_level(axes: Axes, style: LineStyle, reached: Acceleration | None) -> None:
    """Mark where a curve reaches the level, with its steps."""
    if reached is None or reached.strategy is None:
        return
    place = (reached.strategy, reached.level)
    axes.plot(*place, "o", color=style.colour, markersize=5, zorder=99)
    axes.annotate(f"{reached.strategy:.0f} steps", place, xytext=(6, -12),
                  textcoords="offset points", color=style.colour)  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})


def _curve(
    axes: Axes, name: str, style: LineStyle, curves: Mapping[str, Any], axis: str, above: int
) -> None:
    mean, low, high = (curves[k] for k in ("targeted", "targeted_low", "targeted_high"))
    x, y = _along(curves, axis, mean)
    if x is None:
        return
    if low is not None and high is not None:
        edges = [_along(curves, axis, edge)[1] for edge in (low, high)]
        axes.fill_between(x, *edges, color=style.colour, alpha=0.10, linewidth=0, zorder=above - 70)
    label = name.replace("$", r"\$")
    drawn: dict[str, Any] = {"color": style.colour, "linestyle": style.dash}
    drawn |= {"linewidth": style.width, "solid_joinstyle": "round"}
    axes.plot(x, y, label=label, zorder=above, **drawn)


def _along(curves: Mapping[str, Any], axis: str, values: list[float]) -> tuple[Any, Any]:
    """The x and y of a curve; x is None where the axis was not measured."""
    if axis == "steps":
        return np.array(curves["steps"]), np.array(values)
    if axis not in curves["training"]:
        return None, None
    training, selection = (np.array(curves[kind][axis]) for kind in ("training", "selection"))
    return cost_accuracy_curve(training, selection, np.array(values))


def _furnish(regime: Regime, steps: Axes, compute: Axes) -> None:
    base = regime.acceleration(regime.baseline)
    for axes in (steps, compute):
        if base is not None:
            axes.axhline(base.level, color="#555555", linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlim(left=0)
        axes.margins(x=0.02)
    if base is not None:
        words = f"{MAIN_LEVEL:.0%} of {regime.baseline}'s gain"
        place = compute.get_yaxis_transform()
        compute.text(0.99, base.level - 0.004, words, transform=place, ha="right", va="top",
                   fontsize=8, color="#555555")  # fmt: skip
    _tick_whole_percents(steps)
    compute.xaxis.set_major_formatter(EngFormatter(sep=""))
    steps.set(xlabel="training steps", ylabel="targeted accuracy", title="Against steps")
    compute.set(xlabel="FLOPs, selection included", title="Against compute")
