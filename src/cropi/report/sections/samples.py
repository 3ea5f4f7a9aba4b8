"""Prompts to look at: the first and the last selected, and those influence would rather avoid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cropi.report.markup import Charts, Safe, absent, details, hint, joined, tag
from cropi.report.reading import RunData, StageFiles, table_of
from cropi.report.wording import DASH, percent
from cropi.schema import InfluenceEstimate

SHOWN = 4
LONGEST = 700
"""Characters of a prompt or a response that are shown."""


def body(run: RunData, charts: Charts) -> Safe:
    """Return three columns of prompts from the main arm's last selection."""
    done = [
        s
        for s in run.stages.get(run.main, [])
        if s.selection is not None and s.selection.prompt_ids
    ]
    if not done:
        return absent("Nothing has been selected yet.")
    groups = _groups(done[-1])
    ids = {i for chosen in groups.values() for i in chosen}
    prompts = _by_id(
        run, "prompts/pool.parquet", ["prompt_id", "prompt", "messages", "answer", "source"], ids
    )
    said = _by_id(
        run, "rollouts/pool.parquet", ["prompt_id", "text", "reward", "reward_status"], ids
    )
    scores = done[-1].scores
    columns = [
        tag(
            "div",
            tag("h3", title),
            *(_card(run, i, prompts, said, scores) for i in chosen),
            class_="column",
        )
        for title, chosen in groups.items()
    ]
    return joined(
        [
            hint(f"From stage {done[-1].number}; cosines are with each target."),
            tag("div", *columns, class_="columns"),
        ]
    )


def _groups(stage: StageFiles) -> dict[str, list[str]]:
    chosen = stage.selection.prompt_ids if stage.selection else []
    groups = {
        "Selected first": chosen[:SHOWN],
        "Selected last": chosen[max(SHOWN, len(chosen) - SHOWN) :],
    }
    if stage.scores is not None and stage.scores.mean:
        taken = set(chosen)
        mean = np.mean(list(stage.scores.mean.values()), axis=0)
        worst = [stage.scores.prompt_ids[i] for i in np.argsort(mean)]
        groups["Scored lowest, left out"] = [i for i in worst if i not in taken][:SHOWN]
    return {title: ids for title, ids in groups.items() if ids}


def _by_id(
    run: RunData, name: str, columns: list[str], ids: set[str]
) -> dict[str, list[Mapping[str, Any]]]:
    table = table_of(run, run.path / name, columns, sorted(ids))
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in table.to_pylist() if table is not None else []:
        found.setdefault(str(row["prompt_id"]), []).append(row)
    return found


def _card(
    run: RunData,
    prompt_id: str,
    prompts: Mapping[str, Sequence[Mapping[str, Any]]],
    said: Mapping[str, Sequence[Mapping[str, Any]]],
    scores: InfluenceEstimate | None,
) -> Safe:
    row = next(iter(prompts.get(prompt_id, ())), {})
    group = run.rollouts.groups.get(prompt_id) if run.rollouts else None
    facts = [
        run.sources.get(prompt_id, "unknown source"),
        f"pass rate {percent(group.pass_rate, 0) if group else DASH}",
    ]
    facts += _cosines(prompt_id, scores)
    marks = tag("div", *(tag("span", f, class_="badge") for f in facts), class_="facts")
    shown = [
        marks,
        tag("pre", _short(_content(row))),
        tag("div", "answer: ", _short(str(row.get("answer", DASH))), class_="answer"),
    ]
    responses = said.get(prompt_id)
    return tag("article", *shown, _responses(responses) if responses else Safe())


def _cosines(prompt_id: str, scores: InfluenceEstimate | None) -> list[str]:
    if scores is None or prompt_id not in scores.prompt_ids:
        return []
    place = scores.prompt_ids.index(prompt_id)
    return [f"{name} {values[place]:+.3f}" for name, values in scores.mean.items()]


def _content(row: Mapping[str, Any]) -> str:
    """Return the prompt's text, whether it is a chat (as a list or as JSON) or plain."""
    if row.get("prompt"):
        return str(row["prompt"])
    messages = row.get("messages")
    if isinstance(messages, str):
        messages = json.loads(messages) if messages.startswith("[") else [{"content": messages}]
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in messages or [])


def _responses(rows: Sequence[Mapping[str, Any]]) -> Safe:
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


def _judged(row: Mapping[str, Any]) -> bool:
    reward = row.get("reward")
    return reward is not None and reward == reward


def _reward(row: Mapping[str, Any]) -> str:
    status = row.get("reward_status") or "ok"
    return f"reward {row['reward']:.2f}" if _judged(row) else f"no reward: {status}"


def _short(words: str) -> str:
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} … ({len(words):,} characters)"
