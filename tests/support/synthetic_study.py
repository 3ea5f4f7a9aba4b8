"""A study's directory with made-up curves: small round numbers, so that tests can expect by hand.

Stages of 50 steps, an evaluation every 25. Every 25 steps cost each strategy 1,000 generated, 500
prefilled and 1,000 trained tokens and 10 seconds; the model has 1,000 parameters, so that this is
1,000 x (2 x 1,500 + 6 x 1,000) = 9 MFLOPs. Strategies named in `SELECTING` pay 9 MFLOPs (1,000
sampled tokens) and 20 s of rollouts, shared, and 4.5 MFLOPs (400 tokens) and 5 s of scoring a
stage.

Run as a program it writes a large one to look at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

EVERY, STAGE = 25, 50
PARAMETERS = 1000
CHUNK = 9e6
"""Training FLOPs between two evaluations."""
SELECTING = ("cropi", "cropi-fresh", "one_shot", "learnability", "pass_rate")
SOURCES = ("sort", "shift", "max", "count")

Accuracies = Mapping[str, Mapping[int, Sequence[float]]]
"""Targeted accuracy by strategy and seed, one number an evaluation."""


def write_study(
    root: Path,
    accuracies: Accuracies,
    baseline: str = "full",
    seeds: Sequence[int] | None = None,
    stages: int = 2,
    untargeted: Sequence[float] = (0.5, 0.5, 0.52, 0.52, 0.54),
) -> Path:
    """Write a study; a cell with fewer accuracies than its steps ask for is unfinished."""
    root.mkdir(parents=True, exist_ok=True)
    planned = sorted({s for by_seed in accuracies.values() for s in by_seed})
    config = {
        "name": "synthetic",
        "model": {"path": "pocket"},
        "curriculum": {"stages": stages, "steps_per_stage": STAGE},
        "compare": {
            "strategies": list(accuracies),
            "seeds": list(planned if seeds is None else seeds),
            "baseline": baseline,
            "variants": {},
        },
    }
    (root / "study.yaml").write_text(yaml.safe_dump(config))
    for seed in planned:
        write_pool(root / "shared" / f"seed-{seed}")
    for strategy, by_seed in accuracies.items():
        for seed, values in by_seed.items():
            path = root / "cells" / strategy / f"seed-{seed}"
            write_cell(path, strategy, values, stages, untargeted)
    return root


def write_cell(
    path: Path, strategy: str, values: Sequence[float], stages: int, untargeted: Sequence[float]
) -> None:
    """Write one cell: an ordinary run directory with one arm."""
    path.mkdir(parents=True)
    arm = strategy.split("-")[0]
    config = {
        "name": path.name,
        "out": str(path.parent),
        "selection": {"strategy": arm},
        "curriculum": {"stages": stages, "steps_per_stage": STAGE},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"model": {"path": "pocket", "parameters": PARAMETERS}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    owing = [arm] if strategy in SELECTING else []
    rows = [cost("", None, "rollouts", 9e6, generated=1000) | {"arms": [*owing, "other"]}]
    rows += [cost("", None, "warmup", 1e12, forward=10**9), cost("", None, "evaluation", 1e12)]
    for i, value in enumerate(values):
        rows += evaluations(arm, i, value, untargeted[min(i, len(untargeted) - 1)])
    done = max(0, (len(values) - 1) * EVERY // STAGE)
    for stage in range(done):
        if strategy in SELECTING:
            rows.append(cost(arm, stage, "scoring", 4.5e6, forward=400))
            rows.append(reliability(arm, stage))
        rows.append(cost(arm, stage, "training", 2 * CHUNK, generated=2000, forward=3000))
        write_selection(path / "arms" / arm / "stages" / str(stage), strategy, stage)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (path / "timings.jsonl").write_text("".join(timings(arm, owing, len(values), done)))


def cost(
    arm: str, stage: int | None, phase: str, flops: float, generated: int = 0, forward: int = 0
) -> dict[str, Any]:
    return {
        "kind": "cost",
        "arm": arm,
        "stage": stage,
        "phase": phase,
        "tokens_generated": generated,
        "tokens_forward": forward,
        "tokens_backward": 0,
        "flops": flops,
    }


def reliability(arm: str, stage: int) -> dict[str, Any]:
    """A split-half cosine of .6 at first and .1 less every stage; shift's could not be measured."""
    targets = {"sort": {"split_half": 0.6 - 0.1 * stage}, "shift": {"split_half": None}}
    return {"kind": "stage", "arm": arm, "stage": stage, "targets": targets}


def evaluations(arm: str, index: int, value: float, untargeted: float) -> list[dict[str, Any]]:
    """Two targeted sets, 2 points above and below the mean, and one untargeted set."""
    step = index * EVERY
    shared = {
        "kind": "evaluation",
        "arm": arm,
        "stage": max(0, -(-step // STAGE) - 1),
        "step": step,
        "prompts": 500,
        "generated_tokens": 1000 * index,
        "prefill_tokens": 500 * index,
        "trained_tokens": 1000 * index,
    }
    sets = (("sort", True, value + 0.02), ("shift", True, value - 0.02))
    return [
        {**shared, "set": name, "targeted": targeted, "pass_at": {"1": accuracy}}
        for name, targeted, accuracy in (*sets, ("others", False, untargeted))
    ]


def timings(arm: str, owing: list[str], count: int, stages: int) -> list[str]:
    rows: list[dict[str, Any]] = [
        {"phase": "prompts", "arm": "", "stage": None, "seconds": 1000.0},
        {"phase": "rollouts", "arm": "", "stage": None, "seconds": 20.0, "arms": owing},
    ]
    for stage in range(stages):
        if owing:
            rows.append({"phase": "scoring", "arm": arm, "stage": stage, "seconds": 5.0})
        rows.append({"phase": "evaluation", "arm": arm, "stage": stage, "seconds": 1000.0})
    for step in range(5, (count - 1) * EVERY + 1, 5):
        stage = (step - 1) // STAGE
        seconds = 10.0 * step / EVERY
        clock = {"phase": "clock", "arm": arm, "stage": stage, "step": step, "seconds": seconds}
        rows.append(clock)
    return [json.dumps(r) + "\n" for r in rows]


def write_pool(path: Path) -> None:
    """40 prompts, ten per source, and two rollouts each: sources in order of ease."""
    ids = [f"p{i:02d}" for i in range(40)]
    owners = [SOURCES[i // 10] for i in range(40)]
    write_table(path / "prompts" / "pool.parquet", {"prompt_id": ids, "source": owners})
    rewards = [r for i in range(40) for r in (float(i >= 10), float(i >= 20))]
    columns = {
        "prompt_id": np.repeat(ids, 2),
        "response_ids": pa.array([[1, 2]] * 80, pa.list_(pa.int32())),
        "finish_reason": ["stop"] * 80,
        "reward": np.array(rewards, np.float32),
        "reward_status": ["ok"] * 80,
    }
    write_table(path / "rollouts" / "pool.parquet", columns)


def write_sample(run: Path, prompts: int, arm: str = "cropi") -> None:
    """Rollouts of a sample of the pool that the arm took for itself: two per prompt."""
    shared = run.parents[2] / "shared" / run.name
    pool = pq.read_table(shared / "rollouts" / "pool.parquet").slice(0, 2 * prompts)
    path = run / "arms" / arm / "stages" / "0" / "rollouts" / "pool.parquet"
    write_table(path, {name: pool[name] for name in pool.column_names})


def write_selection(path: Path, strategy: str, stage: int) -> None:
    """A selecting strategy takes sort's prompts, and of shift's 2 more each; others take all."""
    chosen = range(40) if strategy not in SELECTING else range(10 + 2 * (stage + 1))
    ids = [f"p{i:02d}" for i in chosen]
    columns = {"prompt_id": ids, "rank": list(range(1, len(ids) + 1)), "score": [0.0] * len(ids)}
    write_table(path / "selection.parquet", columns)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def large(root: Path, seeds: int = 5, evaluations: int = 13) -> Path:
    """Write twelve strategies with noisy saturating curves, one seed of one of them unfinished."""
    names = ["cropi", "cropi-fresh", "one_shot", "learnability", "pass_rate", "random", "full"]
    names += ["cropi-grow", "dapo", "mixed", "wide", "a-strategy-with-a-long-name"]
    draw = np.random.default_rng(7)
    at = np.arange(evaluations)
    values: dict[str, dict[int, list[float]]] = {}
    for i, name in enumerate(names):
        speed, room = (5.5, 0.30) if name == "full" else (1.6 + 0.75 * i, 0.42 - 0.018 * i)
        curve = 0.55 + room * (1 - np.exp(-at / speed))
        noise = draw.normal(0, 0.008, (seeds, evaluations)) + draw.normal(0, 0.012, (seeds, 1))
        noise[:, 0] = 0
        values[name] = {s: (curve + noise[s]).clip(0.02, 0.98).tolist() for s in range(seeds)}
    values["dapo"][seeds - 1] = values["dapo"][seeds - 1][:5]
    del values["wide"][0]
    drift = [0.56 + 0.003 * i for i in range(evaluations)]
    return write_study(root, values, stages=(evaluations - 1) // 2, untargeted=drift)


if __name__ == "__main__":
    large(Path(sys.argv[1]))
