"""A stand-in for the interpreter that has verl: it starts, reports steps and ends like verl's.

It trains nothing, because the real one needs a GPU: it judges a right and a wrong response to
every prompt and leaves the policy as it was. tests/real_engines/test_real_verl.py holds what cropi
tells verl, and reads of it, to the real one. `trainer.project_name` says how it misbehaves.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

SHARDS = ("model", "optim", "extra_state")


def interpreter(folder: Path) -> str:
    """Write a script that stands for verl's python, and can import cropi."""
    path = folder / "python"
    paths = ":".join(sys.path)
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "{__file__}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def main(arguments: list[str]) -> None:
    if arguments[0] != "-m":
        print(json.dumps({"lacks": [], "gpus": 2}))
    elif arguments[1] == "verl.trainer.main_ppo":
        train(dict(map(read_override, arguments[2:])))
    else:
        named = dict(zip(arguments[5::2], arguments[6::2], strict=False))
        merge(Path(named["--local_dir"]), Path(named["--target_dir"]))


def read_override(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key.lstrip("+"), json.loads(value)
    except ValueError:
        return key.lstrip("+"), value.strip("'")


def train(config: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(config["data.train_files"]).to_pylist()
    score = reward_function(config["reward.custom_reward_function.path"])
    first, size = steps_before(config), config["data.train_batch_size"]
    behaviour = config.get("trainer.project_name")
    for step in range(first + 1, config["trainer.total_training_steps"] + 1):
        batch = rows[(step - first - 1) * size : (step - first) * size]
        if behaviour == "shuffled":
            batch = rows[:1] * size
        write_step(config, step, batch, score)
        if behaviour == "ends early":
            return
        if behaviour == "hangs":
            time.sleep(600)
        if behaviour == "fails":
            raise RuntimeError("CUDA error: out of memory")
    save(config)


def reward_function(file: str) -> Any:
    spec = spec_from_file_location("rewards", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_score


def steps_before(config: dict[str, Any]) -> int:
    if config["trainer.resume_mode"] == "disable":
        return 0
    saved = Path(config["trainer.resume_from_path"])
    assert not (saved / "data.pt").exists(), "verl would begin in the middle of the rows"
    assert all((saved / "actor" / shard).is_file() for shard in shards(config))
    return int(saved.name.removeprefix("global_step_"))


def shards(config: dict[str, Any]) -> list[str]:
    ranks = config["trainer.n_gpus_per_node"] * config["trainer.nnodes"]
    return [f"{kind}_world_size_{ranks}_rank_{r}.pt" for kind in SHARDS for r in range(ranks)]


def write_step(config: dict[str, Any], step: int, batch: list[Any], score: Any) -> None:
    from cropi.prompts import read_prompts

    work = Path(config["data.train_files"]).parent
    answers = {p.prompt_id: p.answer for p in read_prompts(work / "prompts.parquet")}
    responses = Path(config["trainer.rollout_data_dir"])
    responses.mkdir(exist_ok=True)
    lines, rewards = [], []
    for row in batch:
        ground_truth = row["reward_model"]["ground_truth"]
        for number in range(config["actor_rollout_ref.rollout.n"]):
            text = answers[ground_truth] if number % 2 == 0 else "wrong"
            given = score(row["data_source"], text, ground_truth, row["extra_info"])
            rewards.append(given["score"])
            lines.append(json.dumps({"output": text, "gts": ground_truth, "step": step}))
    (responses / f"{step}.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "critic/score/mean": sum(rewards) / len(rewards),
        "actor/grad_norm": 0.5,
        "perf/total_num_tokens": 100 * len(rewards),
        "timing_s/step": 2.0,
    }
    file = Path(config["ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"])
    with file.open("a") as metrics:
        metrics.write(json.dumps({"step": step, "data": data}) + "\n")
    print(f"step:{step}")


def save(config: dict[str, Any]) -> None:
    step = config["trainer.total_training_steps"]
    saved = Path(config["trainer.default_local_dir"]) / f"global_step_{step}"
    shutil.copytree(config["actor_rollout_ref.model.path"], saved / "actor" / "huggingface")
    for shard in shards(config):
        (saved / "actor" / shard).write_bytes(b"shard")
    (saved / "data.pt").write_bytes(b"place")


def merge(actor: Path, target: Path) -> None:
    from cropi.store.files import POLICY_RECORD

    for file in sorted((actor / "huggingface").iterdir()):
        if file.is_file() and file.name != POLICY_RECORD:
            shutil.copyfile(file, target / file.name)


if __name__ == "__main__":
    main(sys.argv[1:])
