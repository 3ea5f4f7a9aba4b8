"""What was selected at each stage: by source, by pass rate, and how much of it was new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cropi.report import bars
from cropi.report.choices import Novelty, count_sources, folded, histogram, leading, novelty
from cropi.report.markup import Charts, Safe, absent, figure, hint, joined, table, tag
from cropi.report.numbers import of_kind
from cropi.report.reading import RunData
from cropi.report.wording import DASH, percent
from cropi.schema import Selection


def body(run: RunData, charts: Charts) -> Safe:
    """Return the main arm's charts and the table over all arms that select."""
    chosen = selections(run, run.main)
    if not chosen:
        return absent("Nothing has been selected yet.")
    new = dict(zip(chosen, novelty([s.prompt_ids for s in chosen.values()]), strict=True))
    rates = figure("By pass rate", _pass_rates(run, charts, chosen)) if run.rollouts else Safe()
    fresh = figure(
        "What was there before", charts.add(bars.freshness(new), 330, "overlap with earlier stages")
    )
    pair = tag("div", rates, fresh, class_="pair")
    return joined([_by_source(run, charts, chosen), pair, _table(run), *_remarks(run)])


def selections(run: RunData, arm: str) -> dict[str, Selection]:
    """Return the arm's selections by the stage's name, in order."""
    found = run.stages.get(arm, [])
    return {f"stage {s.number}": s.selection for s in found if s.selection is not None}


def _by_source(run: RunData, charts: Charts, chosen: Mapping[str, Selection]) -> Safe:
    pool = Counter(run.sources.values())
    counts = {name: count_sources(s.prompt_ids, run.sources) for name, s in chosen.items()}
    names = leading([pool, *counts.values()])
    ordered = {name: folded(c, names) for name, c in {"pool": pool, **counts}.items() if c}
    drawn = bars.composition(ordered, names)
    chart = charts.add(drawn, drawn["layout"]["height"], "selected prompts by source")
    note = "Names inside the bars are sources; a bar too thin for its name shows it when touched."
    return joined([figure(f"What {run.main} selected, by source", chart), hint(note)])


def _pass_rates(run: RunData, charts: Charts, chosen: Mapping[str, Selection]) -> Safe:
    assert run.rollouts is not None
    groups = run.rollouts.groups
    largest = max((g.count for g in groups.values()), default=8)
    bins = min(largest, 20) + 1
    pool = histogram((g.pass_rate for g in groups.values()), bins)
    stages = {
        name: histogram((groups[i].pass_rate for i in s.prompt_ids if i in groups), bins)
        for name, s in chosen.items()
    }
    return charts.add(bars.pass_rates(pool, stages), 330, "selected prompts by pass rate")


def _table(run: RunData) -> Safe:
    header = (
        "arm, stage",
        "selected",
        "of pool",
        "mean pass rate",
        "as in previous",
        "never before",
        "negative influence",
    )
    whole = [arm for arm in run.arms if _takes_all(run, arm)]
    rows = [row for arm in run.arms if arm not in whole for row in _arm_rows(run, arm)]
    said = hint(f"{', '.join(whole)}: the whole pool at every stage.") if whole else Safe()
    return joined([table(header, rows) if rows else Safe(), said])


def _takes_all(run: RunData, arm: str) -> bool:
    chosen = selections(run, arm)
    return bool(chosen) and all(len(s.prompt_ids) >= len(run.sources) for s in chosen.values())


def _arm_rows(run: RunData, arm: str) -> list[tuple[str, ...]]:
    chosen = selections(run, arm)
    new = novelty([s.prompt_ids for s in chosen.values()])
    negative = {
        f"stage {r.get('stage')}": r.get("negative") for r in of_kind(run.metrics, "stage", arm)
    }
    return [
        _row(run, f"{arm}, {name}", s, n, negative.get(name), first=i == 0)
        for i, ((name, s), n) in enumerate(zip(chosen.items(), new, strict=True))
    ]


def _row(
    run: RunData, name: str, chosen: Selection, new: Novelty, negative: object, first: bool
) -> tuple[str, ...]:
    total = new.total or 1
    return (
        name,
        f"{new.total:,}",
        percent(new.total / len(run.sources)) if run.sources else DASH,
        _mean_pass_rate(run, chosen),
        DASH if first else percent(new.again / total),
        percent(new.fresh / total),
        DASH if negative is None else str(negative),
    )


def _mean_pass_rate(run: RunData, chosen: Selection) -> str:
    groups = run.rollouts.groups if run.rollouts else {}
    rates = [groups[i].pass_rate for i in chosen.prompt_ids if i in groups]
    known = [r for r in rates if r is not None]
    return percent(sum(known) / len(known)) if known else DASH


def _remarks(run: RunData) -> list[Safe]:
    """Return what the selection itself had to say, once for each different sentence."""
    said: dict[str, dict[str, list[str]]] = {}
    for arm in run.arms:
        for name, chosen in selections(run, arm).items():
            for note in chosen.notes:
                said.setdefault(note, {}).setdefault(arm, []).append(name.removeprefix("stage "))
    return [_remark(note, where) for note, where in said.items()]


def _remark(note: str, where: Mapping[str, list[str]]) -> Safe:
    places = "; ".join(f"{arm}, stage {', '.join(stages)}" for arm, stages in where.items())
    return tag("p", note, tag("small", f" ({places})"), class_="remark")
