"""The pool under its rollouts: which prompts teach nothing and why, and how the grading went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cropi.report import bars
from cropi.report.choices import OTHER
from cropi.report.markup import Charts, Safe, absent, figure, hint, joined, table
from cropi.report.numbers import of_kind
from cropi.report.reading import RunData
from cropi.report.rollouts import RolloutFacts
from cropi.report.wording import amount, percent

SHOWN_SOURCES = 14
GRADED = (("training", "stage", "reward_statuses"), ("evaluation", "evaluation", "statuses"))
"""What else is graded: its title, the kind of its rows, the key of their counts."""


def body(run: RunData, charts: Charts) -> Safe:
    """Return the chart of informative shares by source, and the table of statuses."""
    if run.rollouts is None or not run.rollouts.groups:
        return absent("No rollouts of the pool yet.")
    rows = _rows(run, run.rollouts)
    drawn = bars.signal(rows)
    chart = charts.add(drawn, drawn["layout"]["height"], "informative share of the pool by source")
    idle = 1 - run.rollouts.informative / len(run.rollouts.groups)
    title = f"{percent(idle)} of the pool teaches nothing"
    note = "A prompt has a gradient only where its rewards differ; others cost no pass in scoring."
    return joined([figure(title, chart), hint(note), _statuses(run, run.rollouts)])


def _rows(run: RunData, facts: RolloutFacts) -> dict[str, Counter[str]]:
    """Count kinds by source, most informative first; the smallest of many are put together."""
    counts: dict[str, Counter[str]] = {}
    for prompt_id, group in facts.groups.items():
        counts.setdefault(run.sources.get(prompt_id, "unknown"), Counter())[group.kind] += 1
    largest = sorted(counts, key=lambda s: (-sum(counts[s].values()), s))
    kept = largest if len(largest) <= SHOWN_SOURCES + 1 else largest[:SHOWN_SOURCES]
    rest: Counter[str] = sum((counts[s] for s in largest if s not in kept), Counter())
    ranked = sorted(kept, key=lambda s: -counts[s]["informative"] / sum(counts[s].values()))
    return {s: counts[s] for s in ranked} | ({OTHER: rest} if rest else {})


def _statuses(run: RunData, facts: RolloutFacts) -> Safe:
    length = facts.finishes.get("length", 0)
    rows = [_status_row("rollouts of the pool", facts.statuses)]
    rows += [_status_row(f"rollouts of {n}", f.statuses) for n, f in run.validation.items()]
    for title, kind, key in GRADED:
        counted = {arm: _counted(run, kind, arm, key) for arm in run.arms}
        rows += [_status_row(f"{title}, {arm}", c) for arm, c in counted.items() if c]
    cut = percent(length / max(1, facts.responses))
    said = (
        f"{facts.responses:,} responses, {amount(facts.tokens)} tokens; {cut} hit the length limit."
    )
    return joined([table(("rewards", "judged", "timeout", "error"), rows), hint(said)])


def _counted(run: RunData, kind: str, arm: str, key: str) -> Counter[str]:
    """Add up the reward statuses in all the arm's rows of one kind."""
    counts: Counter[str] = Counter()
    for row in of_kind(run.metrics, kind, arm):
        counts.update(row.get(key) or {})
    return counts


def _status_row(name: str, statuses: Mapping[str, int]) -> tuple[str, ...]:
    total = sum(statuses.values()) or 1
    shares = [
        f"{statuses.get(s, 0):,} ({percent(statuses.get(s, 0) / total)})"
        for s in ("ok", "timeout", "error")
    ]
    return (name, *shares)
