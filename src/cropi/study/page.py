"""The page of a study: one HTML document that works offline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cropi.report import bars
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    details,
    figure,
    hint,
    joined,
    listing,
    switch,
    table,
    tag,
)
from cropi.report.page import document
from cropi.report.wording import DASH, amount, duration, percent
from cropi.study import figures, measures, page_selected, summary
from cropi.study.measures import AXES, MAIN_LEVEL, Axis
from cropi.study.measuring import Study
from cropi.study.reading import Cell

MEASURES: dict[str, str] = {"flops": "FLOPs", "seconds": "seconds", "tokens": "tokens"}


def render(study: Study) -> str:
    """Return a study's page as one HTML document, whatever is still missing."""
    charts = Charts()
    sections = [
        ("accuracy", "Accuracy", _accuracy(study, charts)),
        ("acceleration", "Acceleration", _acceleration(study, charts)),
        ("selection", "What was selected", page_selected.body(study, charts)),
        ("cost", "Cost", _cost(study, charts)),
        ("seeds", "Every seed", _seeds(study)),
        ("rules", "How it is measured", _rules()),
    ]
    return document(f"{study.name} · CROPI study", _top(study), sections, charts)


def _top(study: Study) -> Safe:
    lead, _, rest = summary.headline(study).partition("; ")
    missing = [*study.notes, *study.files.missing]
    parts = [
        tag(
            "div",
            tag("span", study.name, class_="run"),
            tag("span", _setup(study), class_="setup"),
            class_="masthead",
        ),
        tag("h1", lead.rstrip(".") + ".", class_="headline"),
        tag("p", f"{rest[:1].upper()}{rest[1:]}", class_="lead") if rest else Safe(),
        tag("div", listing(missing), class_="missing") if missing else Safe(),
        _table(study),
    ]
    return joined(parts)


def _setup(study: Study) -> str:
    config = study.files.config
    model, curriculum = config.get("model") or {}, config.get("curriculum") or {}
    stages, steps = curriculum.get("stages"), curriculum.get("steps_per_stage")
    seeds = len(study.files.seeds)
    parts = [
        str(model.get("path") or ""),
        f"{len(study.files.strategies)} strategies",
        f"{seeds} seed{'s' if seeds > 1 else ''}" if seeds else "",
        f"{stages} stages of {steps} steps" if stages and steps else "",
    ]
    return " · ".join(p for p in parts if p)


def _table(study: Study) -> Safe:
    rows = [
        (_named(study, name), *line[1:])
        for name, line in zip(study.files.strategies, summary.cells(study), strict=True)
    ]
    told = (
        "Means over seeds; in brackets 95% bootstrap intervals. Targeted: final accuracy; "
        "untargeted: its change in points; area: mean targeted accuracy over training. Steps to "
        f"{MAIN_LEVEL:.0%} of the baseline's gain, acceleration against the baseline's. Compute, "
        "tokens and time hold rollouts and scoring."
    )
    return joined([table(summary.COLUMNS, rows), hint(told)])


def _named(study: Study, name: str) -> object:
    if name != study.baseline:
        return name
    return joined([name, " ", tag("span", "baseline", class_="badge")])


def _accuracy(study: Study, charts: Charts) -> Safe:
    shown = {name: s.curves for name, s in study.standings.items()}
    if not shown:
        return absent("No cell is finished yet, so there is no mean to draw.")
    look = figures.looks(study.files.strategies, study.baseline)
    controls = switch(
        "axis", {a: figures.AXIS_NAMES[a] for a in AXES}, "what accuracy is drawn against"
    )
    parts: list[object] = [tag("div", controls, class_="controls")]
    for targeted, title, height in ((True, "Targeted", 520), (False, "Untargeted", 400)):
        drawn = {a: figures.accuracy(shown, look, a, targeted) for a in AXES}
        known: dict[str, Figure] = {a: d for a, d in drawn.items() if d is not None}
        if not known:
            parts.append(absent(f"{title} accuracy was not evaluated."))
            continue
        for one in known.values() if targeted else ():
            figures.mark_levels(one, study.levels)
        name = f"{title} accuracy, mean over sets and seeds"
        parts += [tag("h3", name), charts.add_variants(["axis"], known, height, name)]
    told = (
        "Bands are 95% bootstrap intervals of the mean over seeds. A click on a name hides it, a "
        "double click shows it alone. Level stretches on compute and time are rollouts and scoring "
        "being paid."
    )
    return joined([*parts, hint(told), details("In numbers", _ends(study))])


def _ends(study: Study) -> Safe:
    header = ("strategy", "start", "final targeted", "area", "final untargeted", "its change")
    rows = [
        (
            _named(study, name),
            percent(own.start),
            summary.share(own.final),
            summary.share(own.area),
            summary.share(own.untargeted),
            summary.points(own.change, interval=True),
        )
        for name, own in study.standings.items()
    ]
    return table(header, rows)


def _acceleration(study: Study, charts: Charts) -> Safe:
    speeds = {n: c.speeds for n, c in study.comparisons.items() if c.speeds}
    if not speeds:
        return absent("There is no acceleration to show; the notes on top say why.")
    present = [a for a in AXES if any(axis == a for by in speeds.values() for axis, _ in by)]
    variants: dict[str, Figure] = {a: figures.accelerations(speeds, a) for a in present}
    height = max(v["layout"]["height"] for v in variants.values())
    chart = charts.add_variants(["ratio"], variants, height, "accelerations at three levels")
    controls = switch("ratio", {a: figures.AXIS_NAMES[a] for a in present}, "what is saved")
    said = ", ".join(f"{share:.0%}" for share in measures.LEVELS)
    told = (
        "The baseline's amount up to a level over the strategy's: above 1 is faster. Lines are 95% "
        "intervals; never: the mean curve does not reach the level."
    )
    return joined(
        [
            tag("div", controls, class_="controls"),
            figure(f"Acceleration at {said} of the baseline's gain", chart),
            hint(told),
            details("In numbers", _ratios(study)),
            *_differences(study),
            *_break_even(study, charts),
        ]
    )


def _ratios(study: Study) -> Safe:
    header = ("strategy", "level", "accuracy", "steps", *(figures.AXIS_NAMES[a] for a in AXES))
    header = (*header[:4], *(f"{h} ratio" for h in header[4:]), "resamples never")
    rows = []
    for name, found in study.comparisons.items():
        for share in measures.LEVELS:
            by: list[measures.Speed | None] = [found.speeds.get((a, share)) for a in AXES]
            if by[0] is not None:
                never = percent(by[0].never / measures.RESAMPLES) if by[0].low is not None else DASH
                told = [f"{share:.0%}", percent(by[0].level), summary.steps_to(by[0])]
                rows.append((name, *told, *(summary.ratio(s) for s in by), never))
    return table(header, rows)


def _differences(study: Study) -> list[Safe]:
    header = ("strategy", "seeds", "final targeted", "area", "final untargeted")
    rows = [
        (
            name,
            len(c.seeds),
            summary.points(c.final, interval=True),
            summary.points(c.area, interval=True),
            summary.points(c.untargeted, interval=True),
        )
        for name, c in study.comparisons.items()
    ]
    told = hint("In points of accuracy, seed against the same seed of the baseline.")
    return [tag("h3", f"Difference to {study.baseline}"), table(header, rows), told]


def _break_even(study: Study, charts: Charts) -> list[Safe]:
    found = {n: c.break_even for n, c in study.comparisons.items() if MAIN_LEVEL in c.break_even}
    title = tag("h3", "When selection pays for itself")
    if not found:
        return [title, absent(f"No strategy that pays for selection reached {MAIN_LEVEL:.0%}.")]
    asked = measures.ASKED_RATIO
    header = ("strategy", "measured c", "break-even c", "compute acceleration", f"at c = {asked:g}")
    main = {name: even[MAIN_LEVEL] for name, even in found.items()}
    rows = [
        (
            name,
            f"{e.measured:.2f}",
            "none" if e.break_even is None else f"{e.break_even:.2f}",
            summary.times(e.at(e.measured)),
            summary.times(e.at(asked)),
        )
        for name, e in main.items()
    ]
    look = figures.looks(study.files.strategies, study.baseline)
    chart = charts.add(figures.prices(main, look), 380, "compute acceleration against c")
    told = (
        "c is a stage's training FLOPs over its selection FLOPs (rollouts and scoring, averaged "
        "over stages). Selection is repriced as if c were another, everything else as measured; "
        "marks are the measured c. Longer training or shorter scoring raise c. Break-even: where "
        f"compute acceleration at the {MAIN_LEVEL:.0%} level is 1; none: not even free selection "
        "would pay."
    )
    return [
        title,
        table(header, rows),
        tag("h3", "Compute acceleration against c"),
        chart,
        hint(told),
    ]


def _cost(study: Study, charts: Charts) -> Safe:
    if not study.standings:
        return absent("No cell is finished yet.")
    names = list(study.standings)
    variants: dict[str, Figure] = {}
    for measure, unit in MEASURES.items():
        paid = {
            phase: [_paid(study, name, phase, measure) for name in names]
            for phase in ("rollouts", "scoring", "training")
        }
        if not np.isnan(list(paid.values())).any():
            variants[measure] = bars.bills(names, paid, unit)
    if not variants:
        return absent("Neither FLOPs nor seconds nor tokens are known.")
    height = max(v["layout"]["height"] for v in variants.values())
    chart = charts.add_variants(["measure"], variants, height, "cost of a seed by phase")
    controls = switch("measure", {m: MEASURES[m] for m in variants}, "measure")
    return joined(
        [
            tag("div", controls, class_="controls"),
            figure("What a seed's run paid, by phase", chart),
            hint(
                "Means over finished seeds. Each strategy pays for the rollouts that it looks at, "
                "though cells of a seed share them. Evaluation and warm-up count for none. Seconds "
                "are wall time on a machine that may have run several cells at once."
            ),
            details("In numbers", _bill(study)),
        ]
    )


def _paid(study: Study, name: str, phase: str, measure: str) -> float:
    amounts = study.standings[name].phases[phase]
    if measure == "tokens":
        return amounts["generated_tokens"] + amounts["trained_tokens"]
    return amounts[measure]


def _bill(study: Study) -> Safe:
    header = ("strategy", "phase", "sampled tokens", "trained tokens", "FLOPs", "time")
    rows = []
    for name, own in study.standings.items():
        for phase, paid in own.phases.items():
            tokens = [amount(paid[m]) for m in ("generated_tokens", "trained_tokens")]
            flops, seconds = (None if np.isnan(paid[m]) else paid[m] for m in ("flops", "seconds"))
            rows.append((name, phase, *tokens, amount(flops), duration(seconds)))
    return table(header, rows, left=2)


def _seeds(study: Study) -> Safe:
    header = (
        "strategy",
        "seed",
        "step",
        "start",
        "final targeted",
        "area",
        "final untargeted",
        f"steps to {MAIN_LEVEL:.0%}",
        "FLOPs",
        "time",
    )
    rows = [_seed(study, cell) for cell in study.files.cells]
    if not rows:
        return absent("No cell has begun.")
    told = (
        f"Steps to {MAIN_LEVEL:.0%}: of this seed alone, to the level of the mean baseline. "
        "Unfinished cells stand here and in no mean."
    )
    return joined([table(header, rows), hint(told)])


def _seed(study: Study, cell: Cell) -> Sequence[object]:
    found = summary.seed_values(study, cell)
    reached = found["steps_to_level"]
    measured = cell.finished and study.speed(cell.strategy) is not None
    never = summary.NEVER if measured else DASH
    count = int(cell.steps[-1]) if len(cell.steps) else 0
    step: object = count
    if not cell.finished:
        step = joined([f"{count} ", tag("span", "unfinished", class_="badge warn")])
    return (
        cell.strategy,
        cell.seed,
        step,
        *(percent(found[k]) for k in ("start", "final_targeted", "area", "final_untargeted")),
        never if reached is None else f"{reached:.0f}",
        amount(_last(cell, "flops")),
        duration(_last(cell, "seconds")),
    )


def _last(cell: Cell, measure: Axis) -> float | None:
    spent = cell.spent.total(measure)
    return float(spent[-1]) if len(spent) and not np.isnan(spent[-1]) else None


def _rules() -> Safe:
    rows = {
        "Curve": "Accuracy of a strategy at the evaluations that all its finished seeds share: the "
        "mean over sets, then over seeds, straight lines in between, nothing else smoothed.",
        "Level": "The start plus 80, 90 or 95% of the baseline's gain, which is its mean accuracy "
        "over the evaluations of the last quarter of steps minus its start. A baseline that gains "
        f"less than {100 * measures.LEAST_GAIN:.0f} points has no level.",
        "Acceleration": "The baseline's steps to a level over the strategy's, each where its mean "
        "curve first crosses the level. Never counts as 0.",
        "Compute and time": "The same ratio on the axes of FLOPs and seconds, at the mean over "
        "seeds of what had been paid. Rollouts are paid before the first stage, or before the "
        "stage for which they were made anew, scoring before its stage.",
        "FLOPs": "2 a parameter for each token sampled or prefilled, 6 for each token trained; "
        "scoring's forward and backward passes as they were counted.",
        "Area": "The area under the targeted curve over the number of steps: mean accuracy during "
        "training, which needs no level.",
        "Intervals": f"95% percentile bootstrap over seeds, {measures.RESAMPLES:,} resamples: "
        "curves, level and ratio are computed anew from the drawn seeds, the same seeds for the "
        "strategy and for the baseline. With few seeds such intervals are somewhat too narrow, and "
        "they say nothing of other prompts or models. With several strategies the fastest is "
        "favoured by chance: its interval does not correct for that.",
    }
    blocks = [tag("div", tag("h3", k), tag("div", v, class_="answer")) for k, v in rows.items()]
    return tag("div", *blocks, class_="columns")
