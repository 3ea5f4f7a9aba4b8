"""How influence is spread over a run's pool, and how reliable each target direction is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.influence.targets import DOMINANT_SHARE, WEAK_SPLIT_HALF
from cropi.report.data.run_data import RunData, StageFiles
from cropi.report.data.selection_counts import SHOWN_SOURCES, split_by_source
from cropi.report.kit.charts import Box, box_of, boxes, source_colour
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    axis_labels,
    badge,
    chart_label,
    controls,
    figure,
    hint,
    joined,
    menu,
    pair,
    switch,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, fixed, percent
from cropi.store.metrics import StageRow


def body(run: RunData, charts: Charts) -> Safe:
    """Return distributions by stage and by source, and the table of target directions."""
    scored = [s for s in run.stages.get(run.main, []) if s.scores is not None and s.scores.mean]
    if not scored:
        return absent(f"{run.main} has scored nothing yet, or its strategy uses no influence.")
    two = pair(
        figure("All informative prompts", _by_stage(charts, scored)),
        _sources_figure(run, charts, scored),
    )
    note = "Boxes hold the middle half of the prompts; whiskers end at percentiles 5 and 95."
    if len(set(run.sources.values())) > SHOWN_SOURCES:
        note += f" Of the sources, the {SHOWN_SOURCES // 2} highest and lowest medians are shown."
    return joined([two, hint(note), *_reliability(run), *_current(scored), *_skipped(scored[-1])])


def _cosines(stage: StageFiles) -> Mapping[str, Any]:
    return stage.scores.mean if stage.scores is not None else {}


def _by_stage(charts: Charts, scored: list[StageFiles]) -> Safe:
    groups: dict[str, dict[str, Box]] = {}
    for stage in scored:
        for name, values in _cosines(stage).items():
            box = box_of(values)
            if box is not None:
                groups.setdefault(name, {})[stage.name] = box
    return charts.add(cosine_boxes(groups), 380, "influence by stage and target")


def _sources_figure(run: RunData, charts: Charts, scored: list[StageFiles]) -> Safe:
    sets = list(dict.fromkeys(name for stage in scored for name in _cosines(stage)))
    latest = {str(stage.number): stage.name for stage in reversed(scored)}
    variants = {
        f"{stage.number}|{name}": _source_boxes(run, stage, name, sets.index(name))
        for stage in scored
        for name in sets
        if name in _cosines(stage)
    }
    by_stage = switch if len(latest) <= 6 else menu
    by_target = switch if len(sets) <= 4 else menu
    choices = controls(
        by_stage("stage", latest, "stage"), by_target("target", {n: n for n in sets}, "target")
    )
    chart = charts.add_variants(["stage", "target"], variants, 380, "influence by source")
    return figure("By source", choices, chart)


def _source_boxes(run: RunData, stage: StageFiles, name: str, place: int) -> Figure:
    """Draw the sources with the highest medians; with many, those in between are left out."""
    assert stage.scores is not None
    split = split_by_source(stage.scores.prompt_ids, stage.scores.mean[name], run.sources)
    drawn = {source: box for source, values in split.items() if (box := box_of(values)) is not None}
    ranked = sorted(drawn, key=lambda source: -drawn[source].median)
    if len(ranked) > SHOWN_SOURCES:
        ranked = [*ranked[: SHOWN_SOURCES // 2], *ranked[-SHOWN_SOURCES // 2 :]]
    return cosine_boxes({name: {s: drawn[s] for s in ranked}}, first=place, horizontal=True)


def cosine_boxes(
    groups: Mapping[str, Mapping[str, Box]], first: int = 0, horizontal: bool = False
) -> Figure:
    """Draw box plots of cosines: a colour for each group, a place for each name.

    `first` is the number of the first group, so that a target has the same colour everywhere.
    """
    data = [
        boxes(axis_labels(named), list(named.values()), source_colour(first + i), horizontal)
        | {"name": chart_label(group), "hoverformat": ".3f"}
        for i, (group, named) in enumerate(groups.items())
    ]
    value = {"zeroline": True, "zerolinecolor": "var(--muted)", "title": "cosine with the target"}
    place: Figure = {"type": "category", "showgrid": False, "automargin": True}
    axes: Figure = {"xaxis": place, "yaxis": value}
    if horizontal:
        axes = {"xaxis": value, "yaxis": place | {"autorange": "reversed"}}
    return {"data": data, "layout": {"boxmode": "group", "showlegend": len(groups) > 1, **axes}}


def _reliability(run: RunData) -> list[Safe]:
    rows = [
        _reliability_row(row.stage, name, facts)
        for row in run.rows.of_kind(StageRow, run.main)
        for name, facts in row.targets.items()
    ]
    if not rows:
        return []
    header = (
        "target",
        "stage",
        "informative prompts",
        "split-half cosine",
        "effective prompts",
        "largest share",
        "",
    )
    note = (
        "Split-half cosine: how well two halves of a validation set agree on the direction. "
        "Effective prompts: how many prompts of equal norm would have this much spread. Flagged: "
        f"a cosine below {WEAK_SPLIT_HALF}, or one prompt with more than "
        f"{percent(DOMINANT_SHARE, 0)} of the direction."
    )
    return [tag("h3", "Can the targets be trusted?"), table(header, rows), hint(note)]


def _reliability_row(stage: int, name: str, facts: Mapping[str, Any]) -> tuple[object, ...]:
    split_half, share = facts.get("split_half"), facts.get("largest_share")
    return (
        name,
        stage,
        facts.get("informative", DASH),
        fixed(split_half, 2),
        fixed(facts.get("effective"), 1),
        percent(share),
        _flag(split_half, share),
    )


def _flag(split_half: float | None, share: float | None) -> Safe:
    if share is not None and share > DOMINANT_SHARE:
        return badge("one prompt dominates", "warn")
    if split_half is not None and split_half < WEAK_SPLIT_HALF:
        return badge("halves disagree", "warn")
    return Safe()


def _current(scored: Sequence[StageFiles]) -> list[Safe]:
    """How each stage's policy does on the pool, as stored rollouts tell it."""
    rows = [row for stage in scored if (row := _current_row(stage)) is not None]
    if not rows:
        return []
    header = ("stage", "mean reward now", "informative now", "effective share of responses")
    note = (
        "Stored responses, each weighted by how likely the stage's policy is to give it "
        "(importance sampling); nothing is sampled. Informative now: the mean chance that a "
        "prompt's next group of as many responses has passes and failures. An effective share "
        "below about a half says that the policy has moved too far for these to be exact."
    )
    return [tag("h3", "The pool under each stage's policy"), table(header, rows), hint(note)]


def _current_row(stage: StageFiles) -> tuple[object, ...] | None:
    scores = stage.scores
    if scores is None or scores.current_reward is None or scores.effective_share is None:
        return None
    known_P = np.isfinite(scores.current_reward)
    if not known_P.any():
        return None
    reward_P = scores.current_reward[known_P].astype(np.float64)
    shares = scores.effective_share[np.isfinite(scores.effective_share)]
    return (
        stage.name,
        fixed(float(reward_P.mean()), 3),
        percent(_informative_chance(reward_P, scores.group_size[known_P])),
        percent(float(np.median(shares)) if len(shares) else None),
    )


def _informative_chance(
    rate_P: NDArray[np.float64], size_P: NDArray[np.integer[Any]]
) -> float | None:
    """Mean chance of a group of that size with a pass and a failure; None for other rewards."""
    if size_P.min() < 1 or rate_P.min() < -1e-6 or rate_P.max() > 1 + 1e-6:
        return None
    rate_P = rate_P.clip(0, 1)
    return float((1 - rate_P**size_P - (1 - rate_P) ** size_P).mean())


def _skipped(last: StageFiles) -> list[Safe]:
    if last.scores is None or not last.scores.skipped:
        return []
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in last.scores.skipped.items())
    total = f"{last.scores.pool_size:,} prompts"
    return [hint(f"Without a score in {last.name}, of {total}: {reasons}.")]
