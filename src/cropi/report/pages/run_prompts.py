"""The pool under its rollouts (which prompts have no gradient and why), and example prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropi.report.data.run_data import RunData, StageFiles, table_of
from cropi.report.data.selection_counts import SHOWN_SOURCES
from cropi.report.kit.charts import OTHER, source_colour, stacked_shares
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    badge,
    details,
    figure,
    hint,
    joined,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, amount, percent
from cropi.rollouts.statistics import GROUP_KINDS, GroupKind, RolloutFileSummary
from cropi.schema import InfluenceEstimate
from cropi.store.metrics import EvaluationRow, StageRow
from cropi.store.run_directory import pool_rollouts

SHOWN_PROMPTS = 4
LONGEST = 700
"""Characters of a prompt or a response that are shown."""
KIND_COLOURS: dict[GroupKind, str] = {
    "informative": source_colour(0),
    "all right": "var(--good)",
    "all wrong": "var(--bad)",
    "all the same": source_colour(2),
    "too few judged": "var(--other)",
}
"""Colours of the reasons for which a prompt has a gradient or none."""

Row = Mapping[str, Any]


def pool(run: RunData, charts: Charts) -> Safe:
    """Return the chart of informative shares by source, and the table of reward statuses."""
    if run.rollouts is None or not run.rollouts.groups:
        return absent("No rollouts of the pool yet.")
    drawn = informative_share(_kinds_by_source(run, run.rollouts))
    chart = charts.add(drawn, drawn["layout"]["height"], "informative share of the pool by source")
    sampled = len(run.rollouts.groups)
    without = percent(1 - run.rollouts.informative / sampled)
    title = f"{without} of the pool teaches nothing"
    if sampled < len(run.sources):
        title = f"{without} of the {sampled:,} prompts that were rolled out teach nothing"
    note = "A prompt has a gradient only where its rewards differ; others cost no pass in scoring."
    return joined([figure(title, chart), hint(note), _statuses(run, run.rollouts)])


def informative_share(rows: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw for each source which of its prompts have a gradient, and why the others have none."""
    present = [k for k in GROUP_KINDS if any(counts.get(k) for counts in rows.values())]
    return stacked_shares(rows, {kind: KIND_COLOURS[kind] for kind in present})


def _kinds_by_source(run: RunData, rollouts: RolloutFileSummary) -> dict[str, Counter[str]]:
    """Count kinds by source, most informative first; the smallest of many are put together."""
    counts: dict[str, Counter[str]] = {}
    for prompt_id, group in rollouts.groups.items():
        counts.setdefault(run.sources.get(prompt_id, "unknown"), Counter())[group.kind] += 1
    by_size = sorted(counts, key=lambda s: (-sum(counts[s].values()), s))
    shown = by_size if len(by_size) <= SHOWN_SOURCES + 1 else by_size[:SHOWN_SOURCES]
    rest: Counter[str] = sum((counts[s] for s in by_size if s not in shown), Counter())
    ranked = sorted(shown, key=lambda s: -counts[s]["informative"] / sum(counts[s].values()))
    return {s: counts[s] for s in ranked} | ({OTHER: rest} if rest else {})


def _statuses(run: RunData, rollouts: RolloutFileSummary) -> Safe:
    rows = [_status_row("rollouts of the pool", rollouts.statuses)]
    rows += [_status_row(f"rollouts of {n}", s.statuses) for n, s in run.validation.items()]
    trained = {
        arm: [r.reward_statuses for r in run.rows.of_kind(StageRow, arm)] for arm in run.arms
    }
    evaluated = {
        arm: [r.statuses for r in run.rows.of_kind(EvaluationRow, arm)] for arm in run.arms
    }
    for title, by_arm in (("training", trained), ("evaluation", evaluated)):
        for arm, counts in by_arm.items():
            if total := _sum(counts):
                rows.append(_status_row(f"{title}, {arm}", total))
    cut = percent(rollouts.finish_reasons.get("length", 0) / max(1, rollouts.responses))
    size = f"{rollouts.responses:,} responses, {amount(rollouts.tokens)} tokens"
    note = hint(f"{size}; {cut} hit the length limit.")
    return joined([table(("rewards", "judged", "timeout", "error"), rows), note])


def _sum(counts: Sequence[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _status_row(name: str, statuses: Mapping[str, int]) -> tuple[str, ...]:
    total = sum(statuses.values()) or 1
    shares = [
        f"{statuses.get(s, 0):,} ({percent(statuses.get(s, 0) / total)})"
        for s in ("ok", "timeout", "error")
    ]
    return (name, *shares)


def examples(run: RunData, charts: Charts) -> Safe:
    """Return three columns of prompts: first and last selected, and of the lowest influence."""
    done = [s for s in run.stages.get(run.main, []) if s.selection and s.selection.prompt_ids]
    if not done:
        return absent("Nothing has been selected yet.")
    groups = _examples(done[-1])
    ids = {i for chosen in groups.values() for i in chosen}
    texts = ["prompt_id", "prompt", "messages", "answer", "source"]
    prompts = _rows_by_id(run, run.path / "prompts/pool.parquet", texts, ids)
    judged = ["prompt_id", "text", "reward", "reward_status"]
    sampled = pool_rollouts(run.path)
    responses = {} if sampled is None else _rows_by_id(run, sampled, judged, ids)
    columns = [
        tag(
            "div",
            tag("h3", title),
            *(
                _example(run, i, prompts.get(i, []), responses.get(i, []), done[-1].scores)
                for i in chosen
            ),
            class_="column",
        )
        for title, chosen in groups.items()
    ]
    note = hint(f"From {done[-1].name}; cosines are with each target.")
    return joined([note, tag("div", *columns, class_="columns")])


def _examples(stage: StageFiles) -> dict[str, list[str]]:
    chosen = stage.selection.prompt_ids if stage.selection else []
    groups = {
        "Selected first": chosen[:SHOWN_PROMPTS],
        "Selected last": chosen[max(SHOWN_PROMPTS, len(chosen) - SHOWN_PROMPTS) :],
    }
    if stage.scores is not None and stage.scores.mean:
        taken = set(chosen)
        mean = np.mean(list(stage.scores.mean.values()), axis=0)
        worst = [stage.scores.prompt_ids[i] for i in np.argsort(mean)]
        groups["Scored lowest, left out"] = [i for i in worst if i not in taken][:SHOWN_PROMPTS]
    return {title: ids for title, ids in groups.items() if ids}


def _rows_by_id(
    run: RunData, file: Path, columns: list[str], ids: set[str]
) -> dict[str, list[Row]]:
    table = table_of(run, file, columns, sorted(ids))
    by_id: dict[str, list[Row]] = {}
    for row in table.to_pylist() if table is not None else []:
        by_id.setdefault(str(row["prompt_id"]), []).append(row)
    return by_id


def _example(
    run: RunData,
    prompt_id: str,
    prompts: Sequence[Row],
    responses: Sequence[Row],
    scores: InfluenceEstimate | None,
) -> Safe:
    row = next(iter(prompts), {})
    group = run.rollouts.groups.get(prompt_id) if run.rollouts else None
    facts = [
        run.sources.get(prompt_id, "unknown source"),
        f"pass rate {percent(group.pass_rate, 0) if group else DASH}",
        *_cosines(prompt_id, scores),
    ]
    return tag(
        "article",
        tag("div", *map(badge, facts), class_="facts"),
        tag("pre", _short(_content(row))),
        tag("div", "answer: ", _short(str(row.get("answer", DASH))), class_="answer"),
        _responses(responses) if responses else Safe(),
    )


def _cosines(prompt_id: str, scores: InfluenceEstimate | None) -> list[str]:
    if scores is None or prompt_id not in scores.prompt_ids:
        return []
    place = scores.prompt_ids.index(prompt_id)
    return [f"{name} {values[place]:+z.3f}" for name, values in scores.mean.items()]


def _content(row: Row) -> str:
    """Return the prompt's text, whether it is a chat (as a list or as JSON) or plain."""
    if row.get("prompt"):
        return str(row["prompt"])
    messages = row.get("messages")
    if isinstance(messages, str):
        messages = json.loads(messages) if messages.startswith("[") else [{"content": messages}]
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in messages or [])


def _responses(rows: Sequence[Row]) -> Safe:
    """Return the best and the worst response of a prompt."""
    ranked = sorted(rows, key=lambda r: float(r["reward"]) if _judged(r) else -np.inf)
    shown = [ranked[-1], ranked[0]] if len(ranked) > 1 else ranked
    parts = [
        joined(
            [tag("div", _reward(r), class_="answer"), tag("pre", _short(str(r.get("text") or "")))]
        )
        for r in shown
    ]
    return details("best and worst response", *parts)


def _judged(row: Row) -> bool:
    reward = row.get("reward")
    return reward is not None and reward == reward


def _reward(row: Row) -> str:
    status = row.get("reward_status") or "ok"
    return f"reward {row['reward']:z.2f}" if _judged(row) else f"no reward: {status}"


def _short(words: str) -> str:
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} … ({len(words):,} characters)"
