"""The page of `cropi rank`: what to train on next, what teaches nothing, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cropi.exchange.ranking.ranking import CHOSEN, Ranking
from cropi.report.data.selection_counts import largest_sources
from cropi.report.kit import charts as draw
from cropi.report.kit.charts import OTHER
from cropi.report.kit.document import document
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    axis_labels,
    card,
    figure,
    hint,
    joined,
    listing,
    masthead,
    pair,
    table,
    tag,
    title_and_lead,
)
from cropi.report.kit.number_format import DASH, fixed, percent
from cropi.text import plural, shortened

SHOWN_PROMPTS = 40
SHOWN_SUSPICIONS = 60
LONGEST = 300
"""Characters of a prompt that are shown; the table has all."""
BINS = 11
SELECTED_COLOUR, OTHER_COLOUR = "var(--arm2)", "var(--arm0)"


def render(ranking: Ranking, commands: Sequence[str] = ()) -> str:
    """Return the page as one HTML document; `commands` start a training on the selection."""
    charts = Charts()
    log = ranking.logged.log
    setup = f"{log.format} · {plural(len(log.responses), 'response')} · {log.place}"
    top = [
        masthead("rank", setup),
        title_and_lead(headline(ranking), ": "),
        tag("div", listing(ranking.notes), class_="missing") if ranking.notes else Safe(),
        tag("div", *(card(*parts) for parts in _cards(ranking)), class_="cards"),
    ]
    sections = [
        ("pool", "What the rollouts say", _pool(ranking, charts)),
        ("next", "To train on next", _next(ranking)),
        ("suspected", "Answers and rewards that look wrong", _suspected(ranking)),
        ("start", "How to start", _start(commands)),
    ]
    return document("rank · CROPI", joined(top), sections, charts)


def headline(ranking: Ranking) -> str:
    """What was selected of how many, and how many that were sampled teach nothing, in one sentence.

    Newest groups decide, not the reasons: strategies that predict also rank prompts without one.
    """
    total, chosen = len(ranking.reasons), len(ranking.selection.prompt_ids)
    sampled = [seen for seen in ranking.logged.history if seen]
    idle = sum(not seen.newest.informative for seen in sampled)
    without = f"{idle:,} of the {len(sampled):,} with responses have no gradient now"
    if ranking.took_all:
        return (
            f"No selection: all {plural(total, 'prompt')} of the pool are taken, where "
            f"{ranking.asked:,} were asked for; {without}"
        )
    return f"{chosen:,} of {plural(total, 'prompt')} to train on next: {without}"


def _cards(ranking: Ranking) -> list[tuple[str, str, str]]:
    history = [each for each in ranking.logged.history if each]
    raw = [h.raw_pass_rate for h in history if not np.isnan(h.raw_pass_rate)]
    current = [h.current_pass_rate for h in history if not np.isnan(h.current_pass_rate)]
    groups = [visit for h in history for visit in h.visits]
    dead = sum(not visit.informative for visit in groups)
    suspected = Counter(each.kind for each in ranking.logged.suspicions if each)
    return [
        (percent(float(np.mean(current)), 0), "current pass rate", "mean over prompts"),
        (percent(float(np.mean(raw)), 0), "raw pass rate", "over all of the log"),
        (percent(dead / len(groups), 0), "of the groups were dead", f"{dead:,} of {len(groups):,}"),
        (f"{suspected['answer']:,}", "answers that look wrong", "all responses contradict them"),
        (f"{suspected['reward']:,}", "rewards that look wrong", "all responses state the answer"),
    ]


def _pool(ranking: Ranking, charts: Charts) -> Safe:
    rates = charts.add(_by_rate(ranking), 320, "prompts by current pass rate")
    sources = _by_source(ranking)
    right = figure("By source", charts.add(sources, 320, "selected share by source"))
    rows = [(name, f"{n:,}", percent(n / len(ranking.reasons))) for name, n in _reasons(ranking)]
    note = (
        "The current pass rate is that of a prompt's newest group. A group whose rewards are all "
        "equal is dead: it was sampled, and has no gradient."
    )
    two = pair(figure("By current pass rate", rates), right)
    return joined([two, hint(note), table(("prompts", "", "share"), rows)])


def _reasons(ranking: Ranking) -> list[tuple[str, int]]:
    return ranking.counts.most_common()


def _by_rate(ranking: Ranking) -> Figure:
    edges = np.linspace(0, 1, BINS + 1)
    rates = np.array([h.current_pass_rate if h else np.nan for h in ranking.logged.history])
    chosen = np.array([reason == CHOSEN for reason in ranking.reasons])
    centres = [float(c) for c in (edges[:-1] + edges[1:]) / 2]
    traces = []
    for name, members, colour in (
        ("selected", chosen, SELECTED_COLOUR),
        ("others", ~chosen, OTHER_COLOUR),
    ):
        counts, _ = np.histogram(rates[members & ~np.isnan(rates)], bins=edges)
        traces.append(draw.bars(centres, counts.tolist(), colour, name=name))
    layout: Figure = {
        "barmode": "stack",
        "bargap": 0.04,
        "xaxis": {"title": "current pass rate", "tickformat": ".0%", "range": [0, 1]},
        "yaxis": {"title": "prompts"},
    }
    return {"data": traces, "layout": layout}


def _by_source(ranking: Ranking) -> Figure:
    pool = Counter(prompt.source or "unnamed" for prompt in ranking.logged.prompts)
    taken = Counter(
        prompt.source or "unnamed"
        for prompt, reason in zip(ranking.logged.prompts, ranking.reasons, strict=True)
        if reason == CHOSEN
    )
    names = largest_sources([pool])
    rest = [name for name in pool if name not in names]
    rows = {name: (taken[name], pool[name]) for name in names if name != OTHER}
    if rest:
        rows[OTHER] = (sum(taken[n] for n in rest), sum(pool[n] for n in rest))
    shares = [chosen / total for chosen, total in rows.values()]
    labels = axis_labels(rows)[::-1]
    layout: Figure = {
        "xaxis": {"title": "share selected", "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"type": "category", "automargin": True},
        "showlegend": False,
    }
    trace = draw.bars(labels, shares[::-1], SELECTED_COLOUR, horizontal=True)
    return {"data": [trace], "layout": layout}


def _next(ranking: Ranking) -> Safe:
    targets = list(ranking.estimate.mean) if ranking.estimate else []
    header = ("rank", "prompt", "current", "raw", "groups", *targets)
    place_of = {p.prompt_id: i for i, p in enumerate(ranking.logged.prompts)}
    shown_ids = ranking.selection.prompt_ids[:SHOWN_PROMPTS]
    rows = [_row(ranking, place_of[name], targets) for name in shown_ids]
    note = (
        f"The first {len(rows)} of {len(ranking.selection.prompt_ids):,}; ranked.parquet beside "
        "this page has every prompt of the pool, and why it is selected or not."
    )
    if targets:
        note += " Influence is a cosine, with its standard error."
    return joined([table(header, rows, left=2), hint(note)])


def _row(ranking: Ranking, place: int, targets: Sequence[str]) -> list[str]:
    seen = ranking.logged.history[place]
    prompt = ranking.logged.prompts[place]
    rates = (seen.current_pass_rate, seen.raw_pass_rate) if seen else (None, None)
    return [
        f"{int(ranking.ranks[place])}",
        shortened(prompt.content or prompt.prompt_id, LONGEST),
        *(DASH if rate is None else percent(rate, 0) for rate in rates),
        f"{len(seen.visits) if seen else 0}",
        *(_influence(ranking, prompt.prompt_id, name) for name in targets),
    ]


def _influence(ranking: Ranking, prompt_id: str, target: str) -> str:
    estimate = ranking.estimate
    if estimate is None or prompt_id not in estimate.prompt_ids:
        return DASH
    row = estimate.prompt_ids.index(prompt_id)
    mean, error = estimate.mean[target][row], estimate.standard_error[target][row]
    around = "" if np.isnan(error) else f" ± {fixed(float(error), 3)}"
    return DASH if np.isnan(mean) else f"{fixed(float(mean), 3)}{around}"


def _suspected(ranking: Ranking) -> Safe:
    pairs = zip(ranking.logged.prompts, ranking.logged.suspicions, strict=True)
    rows = [
        (
            shortened(prompt.content or prompt.prompt_id, LONGEST),
            shortened(prompt.answer, 80),
            shortened(suspicion.stated, 80),
            f"{suspicion.responses}",
            suspicion.kind,
        )
        for prompt, suspicion in pairs
        if suspicion
    ]
    if not rows:
        return absent("None: no prompt has three responses or more that agree and all failed.")
    note = (
        "All responses agree and none passed. Where they contradict the answer, look at the "
        "answer; where they state it, at the verifier or the format that it asks for. "
        f"{min(len(rows), SHOWN_SUSPICIONS):,} of {len(rows):,} are shown."
    )
    header = ("prompt", "answer", "all responses state", "responses", "look at the")
    return joined([table(header, rows[:SHOWN_SUSPICIONS], left=3), hint(note)])


def _start(commands: Sequence[str]) -> Safe:
    control = hint(
        "control holds as many prompts drawn at random from the same pool: train on it with the "
        "same settings to see what the selection is worth."
    )
    if not commands:
        why = "Nothing was exported for a trainer; selection.parquet names the selected prompts."
        return joined([absent(why), control])
    return joined([*(tag("pre", command) for command in commands), control])
