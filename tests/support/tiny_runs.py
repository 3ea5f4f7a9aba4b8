"""Runs that take seconds: the pocket model, a few prompts, two stages of a few steps."""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from cropi.config import RunConfig, load_config
from cropi.curriculum.loop import run
from cropi.pocket.model import build_config, build_tokenizer
from cropi.store.files import read_jsonl
from support.fakes import ENGINE, TRAINER

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"path": "pocket", "device": "cpu"},
    "prompts": {
        "pool": [{"pocket": ["sort", "shift", "add"], "split": "pool", "size": 44}],
        "validation": {"sort": [{"pocket": ["sort"], "split": "validation", "size": 12}]},
        "test": {"sort": [{"pocket": ["sort"], "split": "test", "size": 8}]},
    },
    "verifiers": {"default": "exact"},
    "rollouts": {
        "responses": 8,
        "max_new_tokens": 8,
        "engine": {"name": "transformers", "batch_size": 512},
    },
    "selection": {"ratio": 0.1},
    "curriculum": {"stages": 2, "steps_per_stage": 3},
    "training": {
        "prompts_per_step": 4,
        "responses": 4,
        "learning_rate": 1e-4,
        "engine": {"name": "trl", "grpo": {"lr_scheduler_type": "linear"}},
    },
    "evaluation": {"every": 2},
}


@cache
def untrained() -> str:
    """The folder of a random model with pocket's tokenizer, a thirtieth of its size."""
    folder = tempfile.TemporaryDirectory(prefix="untrained-")
    atexit.register(folder.cleanup)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen2Config(**{**build_config().to_dict(), **small, "layer_types": None})
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder.name)
    build_tokenizer().save_pretrained(folder.name)
    return folder.name


FAKE = (
    f"training.engine={TRAINER}",
    f"rollouts.engine={ENGINE}",
    "rollouts.responses=4",
    "prompts.pool=[{pocket: [sort, shift], split: pool, size: 12}]",
)


def write_config(folder: Path, name: str = "tiny.yaml") -> Path:
    """Write the tiny config; its runs go to `folder`/runs."""
    path = folder / name
    path.write_text(yaml.safe_dump({**TINY, "out": str(folder / "runs")}))
    return path


def tiny_config(folder: Path, *overrides: str) -> RunConfig:
    return load_config(str(write_config(folder)), overrides)


def run_in(folder: Path, config: RunConfig) -> Path:
    """Run from `folder`, with relative paths alone: such runs agree in every promised byte."""
    with chdir(folder):
        return folder / run(config.model_copy(update={"out": "runs"}))


def promised_bytes(run: Path) -> dict[str, str]:
    """Hash of every file whose bytes a resumed run promises: all but wall times and the page."""
    files = [f for f in sorted(run.rglob("*")) if f.is_file()]
    promised = [f for f in files if f.name not in ("timings.jsonl", "report.html")]
    return {
        f.relative_to(run).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in promised
    }


def fake_config(folder: Path, *overrides: str) -> RunConfig:
    """A tiny run that neither samples nor trains: see `support.fakes`."""
    return tiny_config(folder, *FAKE, f"model.path={untrained()}", *overrides)


def assert_every_phase_leaves_its_cost(finished: Path, *arms: str) -> None:
    """A run of these arms has one cost per phase of each arm, and those that arms share."""
    costs = [row for row in read_jsonl(finished / "metrics.jsonl") if row["kind"] == "cost"]
    phases = {(row["arm"], row["phase"]) for row in costs}
    shared = {("", "rollouts"), ("", "evaluation")}
    trained = {(arm, phase) for arm in arms for phase in ("training", "evaluation")}
    assert phases == shared | trained | {("cropi", "rollouts"), ("cropi", "scoring")}
    assert all(row["flops"] > 0 for row in costs)
    assert read_jsonl(finished / "costs.jsonl") == [row for row in costs if not row["arm"]]
