"""What was selected at each stage of a run: by source, by pass rate, and how much of it was new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cropi.report.data.run_data import RunData
from cropi.report.data.selection_counts import (
    Novelty,
    count_sources,
    fold_sources,
    histogram,
    largest_sources,
    stage_novelty,
)
from cropi.report.kit import charts as draw
from cropi.report.kit.charts import composition, ramp_colour, source_colour
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    axis_labels,
    chart_label,
    figure,
    hint,
    joined,
    pair,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, percent
from cropi.schema import Selection
from cropi.store.metrics import StageRow


def body(run: RunData, charts: Charts) -> Safe:
    """Return the main arm's charts and the table over all arms that select."""
    selections = run.selections(run.main)
    if not selections:
        return absent("Nothing has been selected yet.")
    novelty = dict(zip(selections, _novelty(selections), strict=True))
    rates = figure("By pass rate", _pass_rates(run, charts, selections)) if run.rollouts else Safe()
    overlap = charts.add(selection_novelty(novelty), 330, "overlap with earlier stages")
    two = pair(rates, figure("Selected before or new", overlap))
    return joined([_by_source(run, charts, selections), two, _table(run), *_remarks(run)])


def _novelty(selections: Mapping[str, Selection]) -> list[Novelty]:
    return stage_novelty([s.prompt_ids for s in selections.values()])


def _by_source(run: RunData, charts: Charts, selections: Mapping[str, Selection]) -> Safe:
    pool = Counter(run.sources.values())
    counts = {name: count_sources(s.prompt_ids, run.sources) for name, s in selections.items()}
    names = largest_sources([pool, *counts.values()])
    rows = {name: fold_sources(c, names) for name, c in {"pool": pool, **counts}.items() if c}
    drawn = composition(rows, names)
    chart = charts.add(drawn, drawn["layout"]["height"], "selected prompts by source")
    note = "Names inside the bars are sources; hover over a bar that is too thin for its name."
    return joined([figure(f"What {run.main} selected, by source", chart), hint(note)])


def _pass_rates(run: RunData, charts: Charts, selections: Mapping[str, Selection]) -> Safe:
    assert run.rollouts is not None
    groups = run.rollouts.groups
    largest = max((g.count for g in groups.values()), default=8)
    bins = min(largest, 20) + 1
    pool = histogram((g.pass_rate for g in groups.values()), bins)
    stages = {
        name: histogram((groups[i].pass_rate for i in s.prompt_ids if i in groups), bins)
        for name, s in selections.items()
    }
    return charts.add(pass_rate_chart(pool, stages), 330, "selected prompts by pass rate")


def pass_rate_chart(pool: Sequence[float], stages: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of prompts at each pass rate: the pool as bars, stages as lines."""
    ticks = [i / max(1, len(pool) - 1) for i in range(len(pool))]
    ground = draw.bars(ticks, pool, "var(--other)@0.45", name="pool", hovertemplate="%{y:.1%}")
    data = [ground | {"marker": {"color": "var(--other)@0.45"}}]
    for i, (name, shares) in enumerate(stages.items()):
        colour = ramp_colour(i, len(stages))
        trace = draw.line(ticks, shares, colour, shape="hvh", name=chart_label(name))
        data.append(trace | {"hovertemplate": "%{y:.1%}"})
    layout = {
        "bargap": 0,
        "hovermode": "x unified",
        "xaxis": {"title": "pass rate under the rollouts", "tickformat": ".0%"},
        "yaxis": {"title": "share of prompts", "tickformat": ".0%", "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def selection_novelty(stages: Mapping[str, Novelty]) -> Figure:
    """Draw for each stage which prompts had been selected before."""
    parts = {
        "in the previous stage too": (source_colour(5), [n.again for n in stages.values()]),
        "in an earlier stage": (source_colour(0), [n.earlier for n in stages.values()]),
        "never before": (source_colour(1), [n.fresh for n in stages.values()]),
    }
    labels = axis_labels(stages)
    data = [
        draw.bars(labels, counts, colour, name=name, hovertemplate="%{y} prompts")
        for name, (colour, counts) in parts.items()
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "hovermode": "x unified",
        "xaxis": {"type": "category"},
        "yaxis": {"title": "prompts"},
        "legend": {"traceorder": "normal"},
    }
    return {"data": data, "layout": layout}


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
    note = hint(f"{', '.join(whole)}: the whole pool at every stage.") if whole else Safe()
    return joined([table(header, rows) if rows else Safe(), note])


def _takes_all(run: RunData, arm: str) -> bool:
    selections = run.selections(arm)
    sizes = [len(s.prompt_ids) for s in selections.values()]
    return bool(sizes) and min(sizes) >= len(run.sources)


def _arm_rows(run: RunData, arm: str) -> list[tuple[str, ...]]:
    selections = run.selections(arm)
    negative = {f"stage {row.stage}": row.negative for row in run.rows.of_kind(StageRow, arm)}
    rows: list[tuple[str, ...]] = []
    for i, (new, (name, chosen)) in enumerate(
        zip(_novelty(selections), selections.items(), strict=True)
    ):
        total = new.total or 1
        row = (
            f"{arm}, {name}",
            f"{new.total:,}",
            percent(new.total / len(run.sources)) if run.sources else DASH,
            _mean_pass_rate(run, chosen),
            percent(new.again / total) if i else DASH,
            percent(new.fresh / total),
            str(negative.get(name, DASH)),
        )
        rows.append(row)
    return rows


def _mean_pass_rate(run: RunData, chosen: Selection) -> str:
    groups = run.rollouts.groups if run.rollouts else {}
    rates = [groups[i].pass_rate for i in chosen.prompt_ids if i in groups]
    judged = [r for r in rates if r is not None]
    return percent(sum(judged) / len(judged)) if judged else DASH


def _remarks(run: RunData) -> list[Safe]:
    """Return the selections' own notes, once for each different sentence."""
    places: dict[str, dict[str, list[str]]] = {}
    for arm in run.arms:
        for name, chosen in run.selections(arm).items():
            for note in chosen.notes:
                stages = places.setdefault(note, {}).setdefault(arm, [])
                stages.append(name.removeprefix("stage "))
    return [_remark(note, where) for note, where in places.items()]


def _remark(note: str, where: Mapping[str, list[str]]) -> Safe:
    places = "; ".join(f"{arm}, stage {', '.join(stages)}" for arm, stages in where.items())
    return tag("p", note, tag("small", f" ({places})"), class_="remark")
