"""How influence is spread over the pool, and how far each target direction can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cropi.report import bars
from cropi.report.choices import Box, box, by_source
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    figure,
    hint,
    joined,
    menu,
    switch,
    table,
    tag,
)
from cropi.report.numbers import of_kind
from cropi.report.reading import RunData, StageFiles
from cropi.report.wording import DASH, percent
from cropi.schema import InfluenceEstimate

SHOWN_SOURCES = 14

WEAK_HALVES = 0.2
"""Below this cosine, two halves of the validation prompts hardly agree on where to go."""

LOUD_PROMPT = 0.25
"""Above this share of the direction, it is one prompt's more than the set's."""


def body(run: RunData, charts: Charts) -> Safe:
    """Return distributions by stage and by source, and the table of target directions."""
    scored = [s for s in run.stages.get(run.main, []) if s.scores is not None and s.scores.mean]
    if not scored:
        return absent(f"{run.main} has scored nothing yet, or its strategy uses no influence.")
    pair = [
        figure("All informative prompts", _by_stage(charts, scored)),
        _sources_figure(run, charts, scored),
    ]
    note = "Boxes hold the middle half of the prompts; whiskers end at percentiles 5 and 95."
    if len(set(run.sources.values())) > SHOWN_SOURCES:
        note += f" Of the sources, the {SHOWN_SOURCES // 2} highest and lowest medians are shown."
    return joined([tag("div", *pair, class_="pair"), hint(note), *_trust(run), *_skipped(scored)])


def _by_stage(charts: Charts, scored: list[StageFiles]) -> Safe:
    groups: dict[str, dict[str, Box]] = {}
    for stage in scored:
        for name, values in _cosines(stage.scores).items():
            found = box(values)
            if found is not None:
                groups.setdefault(name, {})[f"stage {stage.number}"] = found
    return charts.add(bars.boxes(groups), 380, "influence by stage and target")


def _cosines(scores: InfluenceEstimate | None) -> Mapping[str, Any]:
    return scores.mean if scores is not None else {}


def _sources_figure(run: RunData, charts: Charts, scored: list[StageFiles]) -> Safe:
    sets = list(dict.fromkeys(name for s in scored for name in _cosines(s.scores)))
    latest = {str(s.number): f"stage {s.number}" for s in reversed(scored)}
    variants = {
        f"{s.number}|{name}": _source_boxes(run, s, name, sets.index(name))
        for s in scored
        for name in sets
        if name in _cosines(s.scores)
    }
    choose = switch if len(latest) <= 6 else menu
    pick = switch if len(sets) <= 4 else menu
    controls = [choose("stage", latest, "stage"), pick("target", {n: n for n in sets}, "target")]
    chart = charts.add_variants(["stage", "target"], variants, 380, "influence by source")
    return figure("By source", tag("div", *controls, class_="controls"), chart)


def _source_boxes(run: RunData, stage: StageFiles, name: str, place: int) -> Figure:
    """Draw the sources with the highest medians; with many, those in between are left out."""
    assert stage.scores is not None
    split = by_source(stage.scores.prompt_ids, stage.scores.mean[name], run.sources)
    found = {source: b for source, values in split.items() if (b := box(values)) is not None}
    ranked = sorted(found, key=lambda s: -found[s].median)
    if len(ranked) > SHOWN_SOURCES:
        ranked = [*ranked[: SHOWN_SOURCES // 2], *ranked[-SHOWN_SOURCES // 2 :]]
    return bars.boxes({name: {s: found[s] for s in ranked}}, first=place, horizontal=True)


def _trust(run: RunData) -> list[Safe]:
    rows = [
        _trust_row(row, name, facts)
        for row in of_kind(run.metrics, "stage", run.main)
        for name, facts in (row.get("targets") or {}).items()
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
        "Effective prompts: how many equally loud ones would make it. Flagged: a cosine below "
        f"{WEAK_HALVES}, or one prompt with more than {percent(LOUD_PROMPT, 0)} of the direction."
    )
    return [tag("h3", "Can the targets be trusted?"), table(header, rows), hint(note)]


def _trust_row(row: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> tuple[object, ...]:
    halves, share = facts.get("split_half"), facts.get("largest_share")
    return (
        name,
        row.get("stage", DASH),
        facts.get("informative", DASH),
        _number(halves, 2),
        _number(facts.get("effective"), 1),
        percent(share),
        _verdict(halves, share),
    )


def _number(value: Any, digits: int) -> str:
    return DASH if value is None else f"{float(value):.{digits}f}"


def _verdict(halves: float | None, share: float | None) -> Safe:
    if share is not None and share > LOUD_PROMPT:
        return tag("span", "one prompt leads", class_="badge warn")
    if halves is not None and halves < WEAK_HALVES:
        return tag("span", "halves disagree", class_="badge warn")
    return Safe()


def _skipped(scored: list[StageFiles]) -> list[Safe]:
    last = scored[-1]
    if last.scores is None or not last.scores.skipped:
        return []
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in last.scores.skipped.items())
    return [
        hint(
            f"Without a score in stage {last.number}, of {last.scores.pool_size:,} prompts: "
            f"{reasons}."
        )
    ]
