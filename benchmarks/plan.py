"""How near `cropi plan` comes to what runs cost: by phase and in total, in FLOPs and in seconds.

    OMP_NUM_THREADS=1 python benchmarks/plan.py seconds pocket            # a probe, then the run
    OMP_NUM_THREADS=1 python benchmarks/plan.py seconds pocket --run RUN  # one that is there
    python benchmarks/plan.py flops benchmarks/study/smollm2.yaml --run RUN curriculum.stages=2

`seconds` forecasts from a probe and compares with the clocks of the run. Both count CPU seconds of
one thread, which other programs on the machine change less than wall time; a run that is given has
to have been made by this script. `flops` forecasts from the first 200 of a run's stored pool
rollouts, as a pilot would, and compares with the tokens that the run has counted. Adds to
benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cropi.config import RunConfig, load_config
from cropi.curriculum.loop import run
from cropi.forecast.hardware import find_hardware
from cropi.forecast.model_shape import read_shape
from cropi.forecast.observation import behaviour_of, sampled_set
from cropi.forecast.prompt_counts import count_prompts
from cropi.forecast.run_forecast import plan_run
from cropi.forecast.short_runs import PILOT_PROMPTS
from cropi.forecast.workload import guessed_behaviour, summed_by_phase, workload
from cropi.rollouts import read_rollouts
from cropi.store.metrics import METRICS, TIMINGS, CostRow, TimingRow, read_rows
from cropi.store.run_directory import pool_rollouts
from cropi.study.costs import SHARED

RESULTS = Path(__file__).parent / "results" / "plan.json"
Amounts = Mapping[tuple[str, str], float]
"""By arm and phase."""


def main() -> None:
    """Compare, print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["seconds", "flops"])
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--run", type=Path)
    given = parser.parse_intermixed_args()
    config = load_config(given.config, given.settings)
    compare = compare_seconds if given.what == "seconds" else compare_flops
    name = f"{given.what} of {config.name}"
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = compare(config, given.run)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name]}, indent=1))


def compare_seconds(config: RunConfig, root: Path | None) -> dict[str, object]:
    """Forecast by a probe, and the run itself."""
    time.perf_counter = time.process_time  # type: ignore[assignment]
    forecast = plan_run(config, None, find_hardware(None), probe=True)
    root = root or run(config)
    planned = {(each.arm, each.phase): each.seconds for each in forecast.phases}
    took: dict[tuple[str, str], float] = defaultdict(float)
    for row in read_rows(root / TIMINGS).of_kind(TimingRow):
        took[row.arm or SHARED, row.phase] += row.seconds
    return compared(planned, took)


def compare_flops(config: RunConfig, root: Path | None) -> dict[str, object]:
    """Forecast by the first stored rollouts, and what the run's cost rows say."""
    assert root is not None, "--run names the run that is compared"
    shape, tokenizer = read_shape(config)
    counts = count_prompts(config, tokenizer)
    behaviour = behaviour_of(root, "stored", guessed_behaviour(config, counts))
    stored = pool_rollouts(root)
    assert stored is not None, f"{root} has no rollouts of its pool"
    pilot = sampled_set(read_rollouts(stored)[:PILOT_PROMPTS])
    behaviour = replace(behaviour, pool=pilot, trained_tokens=pilot.response_tokens)
    works = summed_by_phase(workload(config, counts, behaviour))
    planned = {(each.arm, each.phase): each.flops(shape.parameters) for each in works}
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for row in read_rows(root / METRICS).of_kind(CostRow):
        spent[row.arm or SHARED, row.phase] += row.flops
    return compared(planned, spent)


def compared(planned: Amounts, measured: Amounts) -> dict[str, object]:
    """Phases that both have, by phase over all arms, and their sum: forecast over measured."""
    both = [key for key in planned if measured.get(key)]
    phases: dict[str, dict[str, float]] = {}
    for key in both:
        each = phases.setdefault(key[1], {"forecast": 0.0, "measured": 0.0})
        each["forecast"] += planned[key]
        each["measured"] += measured[key]
    total = {side: sum(each[side] for each in phases.values()) for side in ("forecast", "measured")}
    rows = {**phases, "total": total}
    return {
        name: {**row, "ratio": round(row["forecast"] / row["measured"], 3)}
        for name, row in rows.items()
    }


if __name__ == "__main__":
    main()
