"""The top of the page: what happened in one sentence, the key numbers, and the table of arms."""

from __future__ import annotations

from cropi.report.costs import costs
from cropi.report.markup import Charts, Safe, hint, joined, listing, table, tag
from cropi.report.numbers import baseline_of
from cropi.report.reading import RunData
from cropi.report.summary import ArmSummary, summarise
from cropi.report.wording import (
    COLUMNS,
    DASH,
    cells,
    compared,
    duration,
    full_price,
    headline,
    percent,
)


def body(run: RunData, charts: Charts) -> Safe:
    """Return the headline, the cards and the summary table."""
    rows = summarise(run.metrics, run.timings, run.arms, run.main) if run.arms else []
    baseline = baseline_of(run.arms, run.main)
    parts = [tag("h1", headline(rows, baseline, run.planned_steps), class_="headline")]
    told = full_price(rows, baseline)
    parts += [tag("p", told, class_="lead") if told else Safe(), _missing(run)]
    if rows:
        parts += [
            tag("div", *_cards(run, rows, baseline), class_="cards"),
            _summary(rows, baseline),
        ]
    return joined(parts)


def _missing(run: RunData) -> Safe:
    if not run.missing:
        return Safe()
    lead = tag("strong", "This page shows an unfinished or partial run.")
    return tag("div", lead, listing(run.missing), class_="missing")


def _cards(run: RunData, rows: list[ArmSummary], baseline: str | None) -> list[Safe]:
    main = rows[0]
    other = next((r for r in rows if r.arm == baseline), None)
    cards = [_speed(main, other), _targeted(main, other), _untargeted(main, other)]
    return [*cards, _selected(run), _informative(run), _scoring(run)]


def _card(value: str, name: str, note: str = "") -> Safe:
    return tag(
        "div",
        tag("div", value, class_="value"),
        tag("div", name, class_="name"),
        tag("div", note, class_="note"),
        class_="card",
    )


def _speed(main: ArmSummary, other: ArmSummary | None) -> Safe:
    if other is None or main.level is None:
        return _card(DASH, "acceleration", "no baseline to compare with")
    if main.steps_to_level is None:
        return _card(
            "never", "reached the baseline's level", f"{other.arm} ended at {percent(main.level)}"
        )
    if main.acceleration is None:
        return _card(DASH, "acceleration", "the level is the starting point")
    note = f"step {main.steps_to_level:.0f} against {other.arm}'s {other.steps}"
    ratio, more_or_fewer = compared(main.acceleration)
    return _card(ratio, f"{more_or_fewer} steps to the same accuracy", note)


def _targeted(main: ArmSummary, other: ArmSummary | None) -> Safe:
    compared = (
        f"{other.arm} {percent(other.targeted_end)}"
        if other and other.targeted_end is not None
        else ""
    )
    error = (
        f"± {percent(main.targeted_error)}" if main.targeted_error is not None else "not measured"
    )
    start = f"from {percent(main.targeted_start)}" if main.targeted_start is not None else ""
    return _card(
        percent(main.targeted_end),
        f"targeted accuracy, {error}",
        ", ".join(filter(None, [start, compared])),
    )


def _untargeted(main: ArmSummary, other: ArmSummary | None) -> Safe:
    if main.untargeted_end is None:
        return _card(DASH, "untargeted accuracy", "no untargeted set measured")
    compared = (
        f"; {other.arm} {percent(other.untargeted_end)}"
        if other and other.untargeted_end is not None
        else ""
    )
    return _card(
        percent(main.untargeted_end),
        "untargeted accuracy",
        f"from {percent(main.untargeted_start)}{compared}",
    )


def _selected(run: RunData) -> Safe:
    chosen = [s.selection for s in run.stages.get(run.main, []) if s.selection is not None]
    if not chosen or not run.sources:
        return _card(DASH, "of the pool selected", "no selection yet")
    seen = {i for selection in chosen for i in selection.prompt_ids}
    share = sum(len(s.prompt_ids) for s in chosen) / len(chosen) / len(run.sources)
    note = f"{len(seen):,} different prompts over {_counted(len(chosen), 'stage')}"
    return _card(percent(share), "of the pool selected a stage", note)


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _informative(run: RunData) -> Safe:
    if run.rollouts is None or not run.rollouts.groups:
        return _card(DASH, "of the pool informative", "no rollouts yet")
    total = len(run.rollouts.groups)
    share = run.rollouts.informative / total
    return _card(
        percent(share),
        "of the pool informative",
        f"{run.rollouts.informative:,} of {total:,} prompts have a gradient",
    )


def _scoring(run: RunData) -> Safe:
    bill = costs(run.metrics, run.timings, run.arms)
    scoring = [c for c in bill if c.phase == "scoring" and c.arm == run.main and c.seconds]
    if not scoring:
        return _card(DASH, "spent on scoring", "nothing scored")
    stages = sum(s.scores is not None for s in run.stages.get(run.main, [])) or 1
    total = sum(c.seconds for c in bill)
    seconds = sum(c.seconds for c in scoring)
    return _card(
        duration(seconds / stages),
        "of scoring a stage",
        f"{percent(seconds / total)} of all the time",
    )


def _summary(rows: list[ArmSummary], baseline: str | None) -> Safe:
    main = rows[0]
    explained = (
        "Tokens and time hold training, and rollouts and scoring for the arms that use them; "
        "evaluation is left out."
    )
    if baseline and main.level is not None:
        level = f"The level is {baseline}'s final targeted accuracy, {percent(main.level)}. "
        explained = level + explained
    return joined([table(COLUMNS, [cells(r) for r in rows]), hint(explained)])
