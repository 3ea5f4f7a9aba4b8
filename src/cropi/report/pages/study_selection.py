"""What each strategy of a study selected, by source, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cropi.report.data.selection_counts import fold_sources, largest_sources
from cropi.report.kit.charts import composition, stacked_costs
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    controls,
    details,
    figure,
    hint,
    joined,
    menu,
    switch,
    table,
    tag,
)
from cropi.report.kit.number_format import DASH, amount, duration, fixed, percent
from cropi.study.comparison import Study
from cropi.study.results import RunResult

MEASURES: dict[str, str] = {"flops": "FLOPs", "seconds": "seconds", "tokens": "tokens"}


def selection(study: Study, charts: Charts) -> Safe:
    """Return the charts by source, of finished and unfinished runs, and the table of pass rates."""
    by_strategy = {n: _by_stage(study.runs(n, finished=False)) for n in study.files.strategies}
    by_strategy = {name: stages for name, stages in by_strategy.items() if stages}
    if not by_strategy:
        return absent("Nothing has been selected yet.")
    pool: Counter[str] = Counter()
    for run in study.files.runs:
        pool.update(run.selected.pool)
    whole = {name: sum(stages.values(), Counter()) for name, stages in by_strategy.items()}
    names = largest_sources([pool, *whole.values()])
    overall = _composition({"pool": pool, **whole}, names)
    overview = charts.add(overall, overall["layout"]["height"], "selected prompts by source")
    keys = {str(i): name for i, name in enumerate(by_strategy)}
    variants: dict[str, Figure] = {}
    for key, name in keys.items():
        rows = {"pool": pool, **{f"stage {m}": c for m, c in by_strategy[name].items()}}
        variants[key] = _composition(rows, names)
    height = max(v["layout"]["height"] for v in variants.values())
    stages = charts.add_variants(["picked"], variants, height, "selected prompts, stage by stage")
    return joined(
        [
            figure("By source, all stages and seeds together", overview),
            tag("h3", "Stage by stage"),
            controls(menu("picked", keys, "strategy")),
            figure("By source, all seeds together", stages),
            details("Prompts and pass rates in numbers", _pass_rates(study)),
            details("How reliable the targets' directions were", _reliability(study)),
        ]
    )


def _by_stage(runs: Sequence[RunResult]) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = {}
    for run in runs:
        for chosen in run.selected.stages:
            counts.setdefault(chosen.stage, Counter()).update(chosen.sources)
    return dict(sorted(counts.items()))


def _composition(rows: Mapping[str, Counter[str]], names: Sequence[str]) -> Figure:
    return composition({n: fold_sources(c, names) for n, c in rows.items() if c}, names)


def _pass_rates(study: Study) -> Safe:
    rows = []
    for name in study.files.strategies:
        chosen = [s for run in study.runs(name, finished=False) for s in run.selected.stages]
        for stage in sorted({s.stage for s in chosen}):
            of_stage = [s for s in chosen if s.stage == stage]
            sizes = [sum(s.sources.values()) for s in of_stage]
            rates = [s.pass_rate for s in of_stage if s.pass_rate is not None]
            rate = percent(float(np.mean(rates))) if rates else DASH
            rows.append((name, stage, len(of_stage), f"{np.mean(sizes):,.0f}", rate))
    header = ("strategy", "stage", "seeds", "prompts", "mean pass rate")
    note = hint("Pass rates are those of the rollouts that the run began with.")
    return joined([table(header, rows), note])


def _reliability(study: Study) -> Safe:
    """Mean split-half cosines over seeds, a row for each strategy and target, by stage."""
    cosines: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in study.files.runs:
        for stage, by_target in run.split_half.items():
            for target, cosine in by_target.items():
                of_stage = cosines.setdefault((run.strategy, target), {})
                of_stage.setdefault(stage, []).append(cosine)
    if not cosines:
        return absent("No strategy has compared prompts with a target yet.")
    stages = sorted({stage for by_stage in cosines.values() for stage in by_stage})
    rows = [
        (*key, *(fixed(_mean(by_stage.get(stage, [])), 2) for stage in stages))
        for key, by_stage in cosines.items()
    ]
    note = hint(
        "The cosine between the directions of two halves of a target's prompts, the mean over "
        "seeds. Near 0 the direction, and any ranking by it, is noise: more validation prompts or "
        "responses would help."
    )
    header = ("strategy", "target", *(f"stage {stage}" for stage in stages))
    return joined([table(header, rows, left=2), note])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def cost(study: Study, charts: Charts) -> Safe:
    """Return what a seed's run cost by phase, and the same in numbers."""
    if not study.strategies:
        return absent("No run is finished yet.")
    names = list(study.strategies)
    variants: dict[str, Figure] = {}
    for measure, unit in MEASURES.items():
        paid = {
            phase: [_paid(study, name, phase, measure) for name in names]
            for phase in ("rollouts", "scoring", "training")
        }
        if not np.isnan(list(paid.values())).any():
            variants[measure] = stacked_costs(names, paid, unit)
    if not variants:
        return absent("Neither FLOPs nor seconds nor tokens were recorded.")
    height = max(v["layout"]["height"] for v in variants.values())
    chart = charts.add_variants(["measure"], variants, height, "cost of a seed by phase")
    note = (
        "Means over finished seeds. Each strategy pays for the rollouts that it uses, though runs "
        "of a seed share them. Evaluation and warm-up are charged to none. Seconds are wall time "
        "on a machine that may have done several runs at once."
    )
    return joined(
        [
            controls(switch("measure", {m: MEASURES[m] for m in variants}, "measure")),
            figure("What a seed's run paid, by phase", chart),
            hint(note),
            details("In numbers", _cost_table(study)),
        ]
    )


def _paid(study: Study, name: str, phase: str, measure: str) -> float:
    amounts = study.strategies[name].phases[phase]
    if measure == "tokens":
        return amounts["generated_tokens"] + amounts["trained_tokens"]
    return amounts[measure]


def _cost_table(study: Study) -> Safe:
    header = ("strategy", "phase", "sampled tokens", "trained tokens", "FLOPs", "time")
    rows = []
    for name, result in study.strategies.items():
        for phase, paid in result.phases.items():
            counts = (amount(paid[m]) for m in ("generated_tokens", "trained_tokens", "flops"))
            rows.append((name, phase, *counts, duration(paid["seconds"])))
    return table(header, rows, left=2)
