"""A run directory as the curriculum would leave it, drawn from a small made-up learning model.

`python tests/support/synthetic_run.py DIR` writes one to look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SKILLS = (
    "addition",
    "sorting",
    "reverse",
    "counting",
    "brackets",
    "modulo",
    "maximum",
    "rotation",
    "palindrome",
    "dates",
    "base_two",
    "mirror",
)
TARGETS = ("addition", "sorting")
HOSTILE = "</script><script>alert('model')</script><img src=http://evil.example/x onerror=alert(1)>"

CONFIG = """\
name: synthetic
out: runs
seed: 7
model:
  path: pocket
selection:
  strategy: cropi
  ratio: 0.1
curriculum:
  stages: {stages}
  steps_per_stage: 60
evaluation:
  every: 20
baselines: [full]
"""


def write_run(
    path: Path,
    seed: int = 0,
    prompts: int = 480,
    stages: int = 4,
    k: tuple[int, ...] = (1,),
    sources: tuple[str, ...] = SKILLS,
) -> Path:
    draw = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(CONFIG.format(stages=stages))
    _write_json(path / "manifest.json", _manifest())
    ids = [f"p{i:05d}" for i in range(prompts)]
    owners = [sources[i % len(sources)] for i in range(prompts)]
    _write_prompts(path, ids, owners)
    rewards = _write_rollouts(path, ids, owners, sources, draw)
    for target in TARGETS:
        _write_rollouts(path, ids[:40], [target] * 40, sources, draw, f"validation/{target}")
    metrics = [{**_cost("", 0, "rollouts", prompts * 8 * 22), "arms": ["cropi"]}]
    metrics += _write_arms(path, ids, owners, rewards, stages, draw)
    for arm in ("cropi", "full"):
        metrics += _evaluations(arm, stages, k) + _training(arm, stages, draw)
    _write_lines(path / "metrics.jsonl", metrics)
    _write_lines(path / "timings.jsonl", _timings(stages))
    return path


def _manifest() -> dict[str, Any]:
    return {
        "cropi": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.6.0", "trl": "1.10.0"},
        "seeds": {"rollouts": 123, "training": 456},
        "model": {"path": "pocket", "parameters": 1_012_224},
        "machine": {"cpus": 2, "gpus": []},
    }


def _write_prompts(path: Path, ids: list[str], owners: list[str]) -> None:
    texts = [f"{skill}: what is {i} after {i % 7}?" for i, skill in enumerate(owners)]
    texts[0] = f"ignore this {HOSTILE}"
    table = pa.table(
        {
            "prompt_id": ids,
            "prompt": texts,
            "messages": [None] * len(ids),
            "answer": [str(i % 97) for i in range(len(ids))],
            "source": owners,
            "extra": ["{}"] * len(ids),
        }
    )
    _write_table(path / "prompts" / "pool.parquet", table)
    lines = [
        "pool: 14 duplicate prompts, kept once",
        "9 pool prompts stand in test/addition; removed",
    ]
    _write_json(path / "prompts" / "notes.json", {"lines": lines})


def _write_rollouts(
    path: Path,
    ids: list[str],
    owners: list[str],
    sources: tuple[str, ...],
    draw: np.random.Generator,
    name: str = "pool",
) -> np.ndarray:
    ease = dict(zip(sources, np.linspace(0.98, 0.01, len(sources)), strict=True))
    rate = np.clip([ease.get(o, 0.5) + draw.normal(0, 0.15) for o in owners], 0, 1)
    rewards = (draw.random((len(ids), 8)) < rate[:, None]).astype(float)
    status = draw.choice(["ok", "timeout", "error"], size=rewards.size, p=[0.985, 0.01, 0.005])
    flat = np.where(status == "ok", rewards.reshape(-1), np.nan)
    lengths = draw.integers(4, 30, size=rewards.size)
    table = pa.table(
        {
            "prompt_id": np.repeat(ids, 8),
            "response_index": np.tile(np.arange(8), len(ids)),
            "response_ids": pa.array([list(range(n)) for n in lengths], pa.list_(pa.int32())),
            "text": [f"I think it is {n}. {HOSTILE}" for n in lengths],
            "finish_reason": np.where(lengths > 28, "length", "stop"),
            "reward": flat.astype(np.float32),
            "reward_status": status,
        }
    )
    _write_table(path / "rollouts" / f"{name}.parquet", table)
    return rewards


def _write_arms(
    path: Path,
    ids: list[str],
    owners: list[str],
    rewards: np.ndarray,
    stages: int,
    draw: np.random.Generator,
) -> list[dict[str, Any]]:
    informative = [i for i, r in enumerate(rewards) if 0 < r.mean() < 1]
    tilt = np.array([0.25 if owners[i] in TARGETS else 0.0 for i in informative])
    rows: list[dict[str, Any]] = []
    for stage in range(1, stages + 1):
        cosines = {
            t: (tilt * (2 / (1 + stage)) + draw.normal(0.02, 0.12, len(informative))).astype(
                np.float32
            )
            for t in TARGETS
        }
        score = sum(cosines.values())
        order = np.argsort(-score)[: max(1, len(ids) // 10)]
        folder = path / "arms" / "cropi" / "stages" / str(stage)
        _write_scores(folder, ids, informative, cosines)
        _write_selection(
            folder, [ids[informative[i]] for i in order], [float(score[i]) for i in order], len(ids)
        )
        _write_selection(
            path / "arms" / "full" / "stages" / str(stage), ids, [0.0] * len(ids), len(ids)
        )
        rows += [
            _stage_row("cropi", stage, len(order), stage),
            _stage_row("full", stage, len(ids), 0),
        ]
        rows += [_cost("cropi", stage, "scoring", 0, len(informative) * 8 * 40)]
        rows += [
            _cost(a, stage, "training", 60 * 16 * 8 * 22, 60 * 16 * 8 * 40)
            for a in ("cropi", "full")
        ]
    return rows


def _write_scores(
    folder: Path, ids: list[str], informative: list[int], cosines: dict[str, np.ndarray]
) -> None:
    columns = {
        "prompt_id": [ids[i] for i in informative],
        "norm": np.ones(len(informative), np.float32),
        **cosines,
        "group_size": np.full(len(informative), 6),
        "current_reward": np.full(len(informative), 0.5, np.float32),
        "effective_share": np.full(len(informative), 0.75, np.float32),
    }
    skipped = json.dumps({"all rewards equal": len(ids) - len(informative)})
    _write_table(
        folder / "scores.parquet",
        pa.table(columns),
        {"cropi.pool_size": str(len(ids)), "cropi.skipped": skipped},
    )


def _write_selection(folder: Path, ids: list[str], scores: list[float], pool: int) -> None:
    table = pa.table({"prompt_id": ids, "rank": list(range(1, len(ids) + 1)), "score": scores})
    _write_table(
        folder / "selection.parquet",
        table,
        {
            "cropi.pool_size": str(pool),
            "cropi.notes": json.dumps(["one prompt was taken with negative influence"]),
        },
    )


def _stage_row(arm: str, stage: int, selected: int, negative: int) -> dict[str, Any]:
    targets = (
        {
            t: {
                "informative": 60 - stage,
                "split_half": 0.62 - 0.15 * stage + 0.1 * j,
                "effective": 31.5 - 4 * stage,
                "largest_share": 0.07 * stage,
            }
            for j, t in enumerate(TARGETS)
        }
        if arm == "cropi"
        else {}
    )
    return {
        "kind": "stage",
        "arm": arm,
        "stage": stage,
        "steps": 60,
        "selected": selected,
        "negative": negative,
        "notes": [f"{negative} selected prompts have negative influence"] if negative else [],
        "targets": targets,
        "reward_statuses": {"ok": 7670, "timeout": 8, "error": 2},
    }


def _cost(arm: str, stage: int, phase: str, generated: int, forward: int = 0) -> dict[str, Any]:
    return {
        "kind": "cost",
        "arm": arm,
        "stage": stage,
        "phase": phase,
        "tokens_generated": generated,
        "tokens_forward": forward,
        "tokens_backward": forward,
        "flops": 6.0e6 * (generated + forward),
    }


def _evaluations(arm: str, stages: int, k: tuple[int, ...]) -> list[dict[str, Any]]:
    speed = {"cropi": 70.0, "full": 190.0}[arm]
    sets = [
        ("addition", True, 0.42, 0.30),
        ("sorting", True, 0.35, 0.33),
        ("dates", False, 0.50, 0.06),
    ]
    rows = []
    for step in range(0, stages * 60 + 1, 20):
        for j, (name, targeted, start, room) in enumerate(sets):
            wobble = 0.006 * np.sin(step / 11 + 2 * j)
            rate = float(start + room * (1 - np.exp(-step / speed)) + (wobble if step else 0))
            rows.append(
                {
                    "kind": "evaluation",
                    "arm": arm,
                    "stage": max(1, -(-step // 60)),
                    "step": step,
                    "set": name,
                    "targeted": targeted,
                    "prompts": 2000,
                    "pass_at": {str(n): 1 - (1 - rate) ** n for n in k},
                    "statuses": {"ok": 2000},
                    "generated_tokens": step * 16 * 8 * 22,
                    "trained_tokens": step * 16 * 8 * 22,
                }
            )
    return rows


def _training(arm: str, stages: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    base = {"cropi": 0.15, "full": 0.55}[arm]
    return [
        {
            "kind": "train",
            "arm": arm,
            "stage": -(-step // 60),
            "step": step,
            "reward": 0.4 + 0.001 * step + draw.normal(0, 0.03),
            "loss": draw.normal(0, 0.02),
            "grad_norm": 0.8 + draw.normal(0, 0.05),
            "learning_rate": 1e-4,
            "entropy": 0.9 - 0.002 * step + draw.normal(0, 0.01),
            "completion_length": 17 + draw.normal(0, 0.6),
            "zero_std_share": float(np.clip(base + draw.normal(0, 0.08), 0, 1)),
        }
        for step in range(1, stages * 60 + 1)
    ]


def _timings(stages: int) -> list[dict[str, Any]]:
    shared = {"setup": 3.1, "prompts": 1.4, "rollouts": 21.0, "report": 1.2}
    rows = [{"phase": p, "arm": "", "stage": None, "seconds": s} for p, s in shared.items()]
    for arm in ("cropi", "full"):
        for stage in range(1, stages + 1):
            parts = {"selection": 0.1, "training": 10.5, "evaluation": 6.0}
            parts |= {"scoring": 9.0} if arm == "cropi" else {}
            rows += [
                {"phase": p, "arm": arm, "stage": stage, "seconds": s} for p, s in parts.items()
            ]
            rows += [
                {"phase": "clock", "arm": arm, "stage": stage, "step": t, "seconds": t * 0.175}
                for t in range(stage * 60 - 50, stage * 60 + 1, 10)
            ]
    return rows


def _write_table(path: Path, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata or {}), path)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    write_run(Path(sys.argv[1]), prompts=4200, k=(1, 4))
