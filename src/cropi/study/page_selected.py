"""What each strategy selected, by source: over the whole run, and stage by stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cropi.report import bars
from cropi.report.choices import folded, leading
from cropi.report.markup import (
    Charts,
    Figure,
    Safe,
    absent,
    details,
    figure,
    hint,
    joined,
    menu,
    table,
    tag,
)
from cropi.report.wording import DASH, percent
from cropi.study.measuring import Study
from cropi.study.reading import Cell


def body(study: Study, charts: Charts) -> Safe:
    """Return the charts by source, finished cells and others, and the table of pass rates."""
    chosen = {n: _by_stage(study.cells(n, finished=False)) for n in study.files.strategies}
    chosen = {name: by for name, by in chosen.items() if by}
    if not chosen:
        return absent("Nothing has been selected yet.")
    pool: Counter[str] = Counter()
    for cell in study.files.cells:
        pool.update(cell.selected.pool)
    whole = {name: sum(by.values(), Counter()) for name, by in chosen.items()}
    names = leading([pool, *whole.values()])
    overall = bars.composition(_folded({"pool": pool, **whole}, names), names)
    overview = charts.add(overall, overall["layout"]["height"], "selected prompts by source")
    keys = {str(i): name for i, name in enumerate(chosen)}
    variants: dict[str, Figure] = {}
    for key, name in keys.items():
        rows = {"pool": pool, **{f"stage {m}": c for m, c in chosen[name].items()}}
        variants[key] = bars.composition(_folded(rows, names), names)
    height = max(v["layout"]["height"] for v in variants.values())
    stages = charts.add_variants(["picked"], variants, height, "selected prompts, stage by stage")
    return joined(
        [
            figure("By source, all stages and seeds together", overview),
            tag("h3", "Stage by stage"),
            tag("div", menu("picked", keys, "strategy"), class_="controls"),
            figure("By source, all seeds together", stages),
            details("Prompts and pass rates in numbers", _choices(study)),
        ]
    )


def _by_stage(cells: Sequence[Cell]) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for cell in cells:
        for choice in cell.selected.choices:
            found.setdefault(choice.stage, Counter()).update(choice.sources)
    return dict(sorted(found.items()))


def _folded(rows: dict[str, Counter[str]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    return {name: folded(counts, names) for name, counts in rows.items() if counts}


def _choices(study: Study) -> Safe:
    rows = []
    for name in study.files.strategies:
        found = [c for cell in study.cells(name, finished=False) for c in cell.selected.choices]
        for stage in sorted({c.stage for c in found}):
            own = [c for c in found if c.stage == stage]
            sizes = [sum(c.sources.values()) for c in own]
            rates = [c.pass_rate for c in own if c.pass_rate is not None]
            rate = percent(float(np.mean(rates))) if rates else DASH
            rows.append((name, stage, len(own), f"{np.mean(sizes):,.0f}", rate))
    header = ("strategy", "stage", "seeds", "prompts", "mean pass rate")
    told = hint("Pass rates are those of the rollouts that the run began with.")
    return joined([table(header, rows), told])
