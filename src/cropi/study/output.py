"""What a study leaves for other programs: results.parquet and study.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cropi.estimation.intervals import Interval
from cropi.store.files import strict_json, write_json, write_table
from cropi.study import measures
from cropi.study.comparison import BaselineComparison, StrategyResult, Study
from cropi.study.costs import MEASURES
from cropi.study.measures import LEVELS, MAIN_LEVEL, REPORTED_COST_RATIO, Axis
from cropi.study.results import RunResult

RESULTS = pa.schema(
    [
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("stage", pa.int64()),
        ("set", pa.string()),
        ("targeted", pa.bool_()),
        ("accuracy", pa.float64()),
        ("prompts", pa.int64()),
        ("generated_tokens", pa.int64()),
        ("trained_tokens", pa.int64()),
        ("flops", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
"""Columns of results.parquet: one row per evaluation of a set.

The last four are cumulative, the selection's rollouts and scoring included (`costs.MEASURES`);
`seconds` is null for a run without a training clock, `flops` for one without a model's size.
"""
RULES = {
    "levels": list(LEVELS),
    "main_level": MAIN_LEVEL,
    "last_quarter": measures.LAST_QUARTER,
    "least_gain": measures.LEAST_GAIN,
    "interval": "95% by Student's t over paired seeds, of ratios by their logs",
}


def write_results(study: Study, headline: str) -> None:
    """Write results.parquet and study.json into the study's directory, each whole.

    Raises InputError if it cannot be written to.
    """
    root = study.files.root
    write_table(root / "results.parquet", results_table(study.files.runs))
    write_json(root / "study.json", numbers(study, headline))


def results_table(runs: Sequence[RunResult]) -> pa.Table:
    """Return every evaluation of every run, unfinished ones too, as a table with RESULTS."""
    return pa.Table.from_pylist([r for run in runs for r in _result_rows(run)], schema=RESULTS)


def _result_rows(run: RunResult) -> Iterator[dict[str, Any]]:
    for curve in run.sets:
        totals = {m: curve.costs.total(m) for m in MEASURES}
        for i, step in enumerate(curve.steps.tolist()):
            yield {
                "strategy": run.strategy,
                "seed": run.seed,
                "step": step,
                "stage": int(curve.stages[i]),
                "set": curve.name,
                "targeted": curve.targeted,
                "accuracy": float(curve.accuracy[i]),
                "prompts": curve.prompts,
                "generated_tokens": int(totals["generated_tokens"][i]),
                "trained_tokens": int(totals["trained_tokens"][i]),
                "flops": _or_none(totals["flops"][i]),
                "seconds": _or_none(totals["seconds"][i]),
            }


def numbers(study: Study, headline: str) -> dict[str, Any]:
    """Return everything as values for JSON; NaN and infinities are null, a ratio of 0 is never."""
    values = {
        "name": study.name,
        "headline": headline,
        "baseline": study.baseline,
        "seeds": study.files.seeds,
        "rules": RULES,
        "levels": {f"{share:.2f}": level.level for share, level in study.levels.items()},
        "strategies": {name: _strategy(study, name) for name in study.files.strategies},
        "missing": study.files.missing,
        "notes": list(study.notes),
    }
    return dict(strict_json(values))


def _strategy(study: Study, name: str) -> dict[str, Any]:
    result, comparison = study.strategies.get(name), study.comparisons.get(name)
    return {
        "baseline": name == study.baseline,
        "finished_seeds": [run.seed for run in study.runs(name)],
        "result": _result(result) if result else None,
        "compared": _comparison(comparison) if comparison else None,
        "seeds": [_seed(study, run) for run in study.runs(name, finished=False)],
    }


def interval_values(interval: Interval | None) -> dict[str, float | None] | None:
    """Return a mean over seeds and its interval as values for JSON."""
    if interval is None:
        return None
    return {"value": interval.mean, "low": interval.low, "high": interval.high}


def _result(result: StrategyResult) -> dict[str, Any]:
    curves, others = result.curves, result.curves.untargeted
    return {
        "start": result.start,
        "final_targeted": interval_values(result.final),
        "area": interval_values(result.area),
        "final_untargeted": interval_values(result.untargeted),
        "untargeted_change": interval_values(result.change),
        "costs": result.costs,
        "costs_by_phase": result.phases,
        "steps": curves.steps.tolist(),
        "targeted": curves.targeted.mean(axis=0).tolist(),
        "untargeted": None if others is None else others.mean(axis=0).tolist(),
        "flops": _mean_cost(result, "flops"),
        "seconds": _mean_cost(result, "seconds"),
    }


def _mean_cost(result: StrategyResult, axis: Axis) -> list[float] | None:
    costs = result.curves.costs(axis)
    return None if costs is None else np.asarray(sum(costs)).mean(axis=0).tolist()


def _comparison(comparison: BaselineComparison) -> dict[str, Any]:
    return {
        "seeds": list(comparison.seeds),
        "final_targeted": interval_values(comparison.final),
        "area": interval_values(comparison.area),
        "final_untargeted": interval_values(comparison.untargeted),
        "oracle_share": interval_values(comparison.oracle_share),
        "accelerations": [vars(ratio) for ratio in comparison.accelerations.values()],
        "break_even": [
            vars(point)
            | {"acceleration": point.at(point.measured), "at_5": point.at(REPORTED_COST_RATIO)}
            for point in comparison.break_even.values()
        ],
    }


def _seed(study: Study, run: RunResult) -> dict[str, Any]:
    costs = run.costs
    last = {m: float(costs.total(m)[-1]) for m in costs.training} if len(run.steps) else {}
    return {
        "seed": run.seed,
        "finished": run.finished,
        "steps": int(run.steps[-1]) if len(run.steps) else 0,
        **seed_values(study, run),
        "costs": last,
        "pool": run.selected.pool,
        "pool_pass_rate": run.selected.pool_pass_rate,
        "sampled": run.selected.sampled,
        "split_half": run.split_half,
        "selected": [vars(selection) for selection in run.selected.stages],
    }


def seed_values(study: Study, run: RunResult) -> dict[str, float | None]:
    """Return one seed's start, ends, area, and its own step to the main level; None: unmeasured.

    The level is the mean baseline's, so that seeds are comparable; None for "steps_to_level" may
    also mean never.
    """
    if len(run.steps) < 2:
        names = ("start", "final_targeted", "final_untargeted", "area", "steps_to_level")
        return dict.fromkeys(names)
    acceleration = study.acceleration(run.strategy)
    steps_to_level = None
    if acceleration is not None and run.finished:
        curves = study.strategies[run.strategy].curves.for_seeds((run.seed,))
        steps_to_level = measures.seed_steps(curves, acceleration.level)[0]
    return {
        "start": float(run.targeted[0]),
        "final_targeted": float(run.targeted[-1]),
        "final_untargeted": _or_none(float(run.untargeted[-1])),
        "area": float(measures.area(run.steps.astype(np.float64), run.targeted)),
        "steps_to_level": steps_to_level,
    }


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
