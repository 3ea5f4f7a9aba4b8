"""The page of a study: one HTML document that works offline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cropi.report.data import study_summary as summary
from cropi.report.kit.document import document
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    badge,
    controls,
    details,
    figure,
    hint,
    joined,
    listing,
    masthead,
    switch,
    table,
    tag,
    title_and_lead,
)
from cropi.report.kit.number_format import (
    DASH,
    NEVER,
    amount,
    duration,
    fixed,
    percent,
    percent_interval,
    points,
    ratio,
)
from cropi.report.pages import study_charts, study_selection
from cropi.report.pages.study_charts import AXIS_NAMES
from cropi.study import measures
from cropi.study.comparison import Study
from cropi.study.measures import AXES, LEVELS, MAIN_LEVEL, Axis
from cropi.study.output import seed_values
from cropi.study.results import RunResult
from cropi.text import plural


def render(study: Study) -> str:
    """Return a study's page as one HTML document, whatever is still missing."""
    charts = Charts()
    sections = [
        ("accuracy", "Accuracy", _accuracy(study, charts)),
        ("acceleration", "Acceleration", _acceleration(study, charts)),
        ("selection", "What was selected", study_selection.selection(study, charts)),
        ("cost", "Cost", study_selection.cost(study, charts)),
        ("seeds", "Every seed", _seeds(study)),
        ("rules", "How it is measured", _rules()),
    ]
    return document(f"{study.name} · CROPI study", _top(study), sections, charts)


def _top(study: Study) -> Safe:
    missing = summary.further_notes(study)
    parts = [
        masthead(study.name, _setup(study)),
        title_and_lead(summary.headline(study), "; "),
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
        plural(seeds, "seed") if seeds else "",
        f"{plural(stages, 'stage')} of {plural(steps, 'step')}" if stages and steps else "",
    ]
    return " · ".join(p for p in parts if p)


def _table(study: Study) -> Safe:
    rows = [
        (_named(study, name), *line[1:])
        for name, line in zip(study.files.strategies, summary.table_rows(study), strict=True)
    ]
    note = (
        "Means over seeds; in brackets 95% intervals. Targeted: final accuracy; "
        "untargeted: its change in points; area: mean targeted accuracy over training. Steps to "
        f"{MAIN_LEVEL:.0%} of the baseline's gain, acceleration against the baseline's. Compute, "
        "tokens and time include rollouts and scoring."
    )
    return joined([table(summary.COLUMNS, rows), hint(note)])


def _named(study: Study, name: str) -> object:
    if name != study.baseline:
        return name
    return joined([name, " ", badge("baseline")])


def _accuracy(study: Study, charts: Charts) -> Safe:
    shown = {name: result.curves for name, result in study.strategies.items()}
    if not shown:
        return absent("No run is finished yet, so there is no mean to draw.")
    styles = study_charts.trace_styles(study.files.strategies, study.baseline)
    axes: dict[str, str] = {axis: AXIS_NAMES[axis] for axis in AXES}
    parts: list[object] = [controls(switch("axis", axes, "what accuracy is drawn against"))]
    for targeted, title, height in ((True, "Targeted", 520), (False, "Untargeted", 400)):
        drawn = {a: study_charts.accuracy(shown, styles, a, targeted) for a in AXES}
        variants: dict[str, Figure] = {a: d for a, d in drawn.items() if d is not None}
        if not variants:
            parts.append(absent(f"{title} accuracy was not evaluated."))
            continue
        for variant in variants.values() if targeted else ():
            study_charts.mark_highest_level(variant, study.levels)
        name = f"{title} accuracy, mean over sets and seeds"
        parts += [tag("h3", name), charts.add_variants(["axis"], variants, height, name)]
    note = (
        "Bands are 95% intervals of the mean over seeds. Click a name to hide it, double "
        "click to show it alone. Flat stretches on compute and time are rollouts and scoring."
    )
    return joined([*parts, hint(note), details("In numbers", _final_accuracies(study))])


def _final_accuracies(study: Study) -> Safe:
    header = ("strategy", "start", "final targeted", "area", "final untargeted", "its change")
    rows = [
        (
            _named(study, name),
            percent(result.start),
            percent_interval(result.final),
            percent_interval(result.area),
            percent_interval(result.untargeted),
            points(result.change, interval=True),
        )
        for name, result in study.strategies.items()
    ]
    return table(header, rows)


def _acceleration(study: Study, charts: Charts) -> Safe:
    ratios = {n: c.accelerations for n, c in study.comparisons.items() if c.accelerations}
    if not ratios:
        return absent("There is no acceleration to show; the notes on top say why.")
    present = [a for a in AXES if any(axis == a for by in ratios.values() for axis, _ in by)]
    variants: dict[str, Figure] = {a: study_charts.accelerations(ratios, a) for a in present}
    height = max(v["layout"]["height"] for v in variants.values())
    chart = charts.add_variants(["ratio"], variants, height, "accelerations at three levels")
    shares = ", ".join(f"{share:.0%}" for share in LEVELS)
    note = (
        "The baseline's amount up to a level over the strategy's: above 1 is faster. Lines are 95% "
        "intervals; never: half of the seeds or more do not reach the level."
    )
    return joined(
        [
            controls(switch("ratio", {a: AXIS_NAMES[a] for a in present}, "what is saved")),
            figure(f"Acceleration at {shares} of the baseline's gain", chart),
            hint(note),
            details("In numbers", _ratio_table(study)),
            *_differences(study),
            *_break_even(study, charts),
        ]
    )


def _ratio_table(study: Study) -> Safe:
    ratio_columns = (f"{AXIS_NAMES[axis]} ratio" for axis in AXES)
    header = ("strategy", "level", "accuracy", "steps", *ratio_columns, "seeds never")
    rows = []
    for name, comparison in study.comparisons.items():
        for share in LEVELS:
            by_axis = [comparison.accelerations.get((axis, share)) for axis in AXES]
            steps = by_axis[0]
            if steps is None:
                continue
            never = f"{steps.never} of {steps.seeds}"
            level = (f"{share:.0%}", percent(steps.level), summary.steps_to_level(steps))
            rows.append((name, *level, *map(summary.acceleration, by_axis), never))
    return table(header, rows)


def _differences(study: Study) -> list[Safe]:
    header = (
        *("strategy", "seeds", "final targeted", "area", "final untargeted"),
        "oracle share",
    )
    rows = [
        (
            name,
            len(c.seeds),
            points(c.final, interval=True),
            points(c.area, interval=True),
            points(c.untargeted, interval=True),
            summary.oracle_share(c.oracle_share),
        )
        for name, c in study.comparisons.items()
    ]
    note = hint(
        "In points of accuracy, seed against the same seed of the baseline; the share is of the "
        "oracle's advantage in area, with a dash where that advantage may be none."
    )
    return [tag("h3", f"Difference to {study.baseline}"), table(header, rows), note]


def _break_even(study: Study, charts: Charts) -> list[Safe]:
    by_strategy = {n: c.break_even.get(MAIN_LEVEL) for n, c in study.comparisons.items()}
    main = {name: point for name, point in by_strategy.items() if point is not None}
    title = tag("h3", "When selection pays for itself")
    if not main:
        return [title, absent(f"No strategy that pays for selection reached {MAIN_LEVEL:.0%}.")]
    c = measures.REPORTED_COST_RATIO
    header = ("strategy", "measured c", "break-even c", "compute acceleration", f"at c = {c:g}")
    rows = [
        (
            name,
            fixed(point.measured, 2),
            "none" if point.break_even is None else fixed(point.break_even, 2),
            ratio(point.at(point.measured)),
            ratio(point.at(c)),
        )
        for name, point in main.items()
    ]
    styles = study_charts.trace_styles(study.files.strategies, study.baseline)
    drawn = study_charts.break_even_figure(main, styles)
    chart = charts.add(drawn, 380, "compute acceleration against c")
    note = (
        "c is a stage's training FLOPs over its selection FLOPs (rollouts and scoring, averaged "
        "over stages). Selection is repriced as if c were different, everything else as measured; "
        "marks are the measured c. Longer training or shorter scoring raise c. Break-even: where "
        f"compute acceleration at the {MAIN_LEVEL:.0%} level is 1; none: not even free selection "
        "would pay."
    )
    subtitle = tag("h3", "Compute acceleration against c")
    return [title, table(header, rows), subtitle, chart, hint(note)]


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
    rows = [_seed(study, run) for run in study.files.runs]
    if not rows:
        return absent("No run has begun.")
    note = (
        f"Steps to {MAIN_LEVEL:.0%}: of this seed alone, to the level of the mean baseline. "
        "Unfinished runs are listed here and are in no mean."
    )
    return joined([table(header, rows), hint(note)])


def _seed(study: Study, run: RunResult) -> Sequence[object]:
    values = seed_values(study, run)
    reached = values["steps_to_level"]
    comparable = run.finished and study.acceleration(run.strategy) is not None
    not_reached = NEVER if comparable else DASH
    last = int(run.steps[-1]) if len(run.steps) else 0
    step: object = last if run.finished else joined([f"{last} ", badge("unfinished", "warn")])
    shown = ("start", "final_targeted", "area", "final_untargeted")
    return (
        run.strategy,
        run.seed,
        step,
        *(percent(values[name]) for name in shown),
        not_reached if reached is None else f"{reached:.0f}",
        amount(_last(run, "flops")),
        duration(_last(run, "seconds")),
    )


def _last(run: RunResult, measure: Axis) -> float | None:
    paid = run.costs.total(measure)
    return float(paid[-1]) if len(paid) and not np.isnan(paid[-1]) else None


def _rules() -> Safe:
    rows = {
        "Curve": "Accuracy of a strategy at the evaluations that all its finished seeds share: the "
        "mean over sets, then over seeds, straight lines in between, nothing else smoothed.",
        "Level": "The start plus 80, 90 or 95% of the baseline's gain, which is its mean accuracy "
        "over the evaluations of the last quarter of steps minus its start. A baseline that gains "
        f"less than {100 * measures.LEAST_GAIN:.0f} points has no level.",
        "Acceleration": "The baseline's steps to a level over the strategy's, each where a seed's "
        "own curve first crosses the level, and the geometric mean over seeds. A seed that never "
        "does counts as if it did at its last evaluation, and opens the interval at that end; if "
        "half of a strategy's seeds or more never do, the ratio is never.",
        "Compute and time": "The same ratio on the axes of FLOPs and seconds spent until then. "
        "Rollouts count before the first stage, or before the stage for which they were "
        "refreshed, scoring before its stage.",
        "FLOPs": "2 per parameter for each token sampled or prefilled, 6 for each token trained; "
        "scoring's forward and backward passes as they were counted.",
        "Area": "The area under the targeted curve over the number of steps: mean accuracy during "
        "training, which needs no level.",
        "Share of the oracle's advantage": "The strategy's area minus the baseline's, over "
        "the same of oracle, which knows where the targets are; with Fieller's interval.",
        "Intervals": "95% by Student's t over seeds, of ratios by their logs; a seed's strategy "
        "and baseline are paired. They say nothing about other prompts or models. With several "
        "strategies the fastest is favoured by chance: its interval does not correct for that.",
    }
    blocks = [tag("div", tag("h3", k), tag("div", v, class_="answer")) for k, v in rows.items()]
    return tag("div", *blocks, class_="columns")
