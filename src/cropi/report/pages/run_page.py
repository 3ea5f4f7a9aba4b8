"""The page of a run: what happened in one sentence, the key numbers, the arms, all sections."""

from __future__ import annotations

import json
from collections.abc import Callable

from cropi.report.data.run_data import RunData
from cropi.report.data.run_summary import (
    COLUMNS,
    ArmSummary,
    fewer_or_more,
    full_cost,
    table_row,
)
from cropi.report.kit.document import document
from cropi.report.kit.markup import (
    Charts,
    Safe,
    card,
    details,
    hint,
    joined,
    listing,
    masthead,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, NEVER, duration, percent
from cropi.report.pages import (
    run_accuracy,
    run_influence,
    run_prompts,
    run_selection,
    run_training,
)
from cropi.study.costs import phase_costs
from cropi.text import plural

Body = Callable[[RunData, Charts], Safe]


def render(run: RunData) -> str:
    """Return a run's page as one HTML document."""
    charts = Charts()
    name = str(run.config.get("name") or run.path.resolve().name)
    mark = tag("span", "CROPI", class_="mark")
    top = joined([masthead(name, _setup(run), mark), _results(run)])
    sections = [(key, title, body(run, charts)) for key, title, body in SECTIONS]
    return document(f"{name} · CROPI report", top, sections, charts)


def settings(run: RunData, charts: Charts) -> Safe:
    """Return the notes about the prompts, and config and manifest behind a click."""
    parts = [tag("h3", "Prompts"), listing(run.notes)] if run.notes else []
    if run.config_text:
        parts.append(details("config.yaml, resolved", tag("pre", run.config_text)))
    if run.manifest:
        manifest = json.dumps(run.manifest, indent=2, ensure_ascii=False)
        title = "manifest.json: versions, seeds, model, machine"
        parts.append(details(title, tag("pre", manifest)))
    if run.config_text:
        note = "The same config and seed give the same selections; cropi run accepts this file."
        parts.append(hint(note))
    return joined(parts)


SECTIONS: tuple[tuple[str, str, Body], ...] = (
    ("accuracy", "Accuracy", run_accuracy.body),
    ("selection", "What was selected", run_selection.body),
    ("influence", "Influence", run_influence.body),
    ("pool", "The pool", run_prompts.pool),
    ("training", "Training", run_training.body),
    ("cost", "Time and cost", run_training.cost),
    ("samples", "Example prompts", run_prompts.examples),
    ("settings", "Notes and settings", settings),
)


def _setup(run: RunData) -> str:
    stages = run.setting("curriculum", "stages")
    steps = run.setting("curriculum", "steps_per_stage")
    parts = [
        str(run.setting("model", "path") or ""),
        f"{len(run.sources):,} prompts" if run.sources else "",
        f"{plural(stages, 'stage')} of {plural(steps, 'step')}" if stages and steps else "",
        f"seed {run.config['seed']}" if "seed" in run.config else "",
        f"cropi {run.manifest['cropi']}" if run.manifest.get("cropi") else "",
    ]
    return " · ".join(p for p in parts if p)


def _results(run: RunData) -> Safe:
    """Return the headline, the cards and the summary table."""
    rows = run.summary()
    parts = [tag("h1", run.headline(), class_="headline")]
    if lead := full_cost(rows, run.baseline):
        parts.append(tag("p", lead, class_="lead"))
    if run.missing:
        notice = tag("strong", "This page shows an unfinished or partial run.")
        parts.append(tag("div", notice, listing(run.missing), class_="missing"))
    if rows:
        parts += [tag("div", *_cards(run, rows), class_="cards"), _summary_table(run, rows)]
    return joined(parts)


def _cards(run: RunData, rows: list[ArmSummary]) -> list[Safe]:
    main = rows[0]
    other = next((row for row in rows if row.arm == run.baseline), None)
    cards = [_acceleration(main, other), _targeted(main, other), _untargeted(main, other)]
    return [*cards, _selected(run), _informative(run), _scoring(run)]


def _acceleration(main: ArmSummary, other: ArmSummary | None) -> Safe:
    if other is None or main.level is None:
        return card(DASH, "acceleration", "no baseline to compare with")
    if main.steps_to_level is None:
        note = f"{other.arm} ended at {percent(main.level)}"
        return card(NEVER, "reached the baseline's level", note)
    if main.acceleration is None:
        return card(DASH, "acceleration", "the level is the starting point")
    note = f"step {main.steps_to_level:.0f} against {other.arm}'s {other.steps}"
    value, more_or_fewer = fewer_or_more(main.acceleration)
    return card(value, f"{more_or_fewer} steps to the same accuracy", note)


def _targeted(main: ArmSummary, other: ArmSummary | None) -> Safe:
    notes = []
    if main.targeted_start is not None:
        notes.append(f"from {percent(main.targeted_start)}")
    if other is not None and other.targeted_end is not None:
        notes.append(f"{other.arm} {percent(other.targeted_end)}")
    measured = main.targeted_error is not None
    error = f"± {percent(main.targeted_error)}" if measured else "not measured"
    return card(percent(main.targeted_end), f"targeted accuracy, {error}", ", ".join(notes))


def _untargeted(main: ArmSummary, other: ArmSummary | None) -> Safe:
    if main.untargeted_end is None:
        return card(DASH, "untargeted accuracy", "no untargeted set measured")
    note = f"from {percent(main.untargeted_start)}"
    if other is not None and other.untargeted_end is not None:
        note += f"; {other.arm} {percent(other.untargeted_end)}"
    return card(percent(main.untargeted_end), "untargeted accuracy", note)


def _selected(run: RunData) -> Safe:
    selections = list(run.selections(run.main).values())
    if not selections or not run.sources:
        return card(DASH, "of the pool selected", "no selection yet")
    different = {i for selection in selections for i in selection.prompt_ids}
    mean = sum(len(s.prompt_ids) for s in selections) / len(selections)
    note = f"{len(different):,} different prompts over {plural(len(selections), 'stage')}"
    return card(percent(mean / len(run.sources)), "of the pool selected per stage", note)


def _informative(run: RunData) -> Safe:
    if run.rollouts is None or not run.rollouts.groups:
        return card(DASH, "of the pool informative", "no rollouts yet")
    count, total = run.rollouts.informative, len(run.rollouts.groups)
    note = f"{count:,} of {total:,} prompts have a gradient"
    what = "of the pool" if total >= len(run.sources) else "of what was rolled out"
    return card(percent(count / total), f"{what} informative", note)


def _scoring(run: RunData) -> Safe:
    ledger = phase_costs(run.rows, run.arms)
    scoring = [c for c in ledger if c.phase == "scoring" and c.arm == run.main and c.seconds]
    if not scoring:
        return card(DASH, "spent on scoring", "nothing scored")
    stages = sum(s.scores is not None for s in run.stages.get(run.main, [])) or 1
    seconds, total = sum(c.seconds for c in scoring), sum(c.seconds for c in ledger)
    note = f"{percent(seconds / total)} of all the time"
    every = "of scoring per stage" if stages > 1 else "of scoring"
    return card(duration(seconds / stages), every, note)


def _summary_table(run: RunData, rows: list[ArmSummary]) -> Safe:
    explained = (
        "Tokens and time include training, and rollouts and scoring for the arms that use them; "
        "evaluation is left out."
    )
    if run.baseline and rows[0].level is not None:
        level = percent(rows[0].level)
        explained = f"The level is {run.baseline}'s final targeted accuracy, {level}. {explained}"
    return joined([table(COLUMNS, [table_row(row) for row in rows]), hint(explained)])
