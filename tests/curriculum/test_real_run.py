"""Runs with the real trainer and engine: what `support.fakes` leaves out, from end to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cropi.curriculum.loop import run
from cropi.store.files import read_jsonl
from cropi.store.tables import read_selection
from support.fakes import TRAINER
from support.tiny_runs import (
    assert_every_phase_leaves_its_cost,
    promised_bytes,
    run_in,
    tiny_config,
    write_config,
)

POOL_DIRECTION = "prompts.pool=[{pocket: [sort, shift, add], split: pool, size: 16}]"
KILL_POINT = "arms/cropi/stages/1/policy.part"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two stages.

    A baseline trains like any arm; one takes part in the runs of test_loop.py.
    """
    folder = tmp_path_factory.mktemp("reference")
    return run_in(folder, tiny_config(folder, POOL_DIRECTION))


def run_until(config: Path, event: Path) -> None:
    """Start the run in a process of its own and kill it as soon as the file `event` is there."""
    command = [sys.executable, "-m", "cropi", "run", str(config)]
    command += [POOL_DIRECTION, "out=runs"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=config.parent
    ) as process:
        while not event.exists():
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_run_whose_process_was_killed_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    run_until(write_config(tmp_path), tmp_path / "runs" / "tiny" / KILL_POINT)
    resumed = run_in(tmp_path, tiny_config(tmp_path, POOL_DIRECTION))
    assert promised_bytes(resumed) == promised_bytes(finished)


def test_another_seed_selects_other_prompts(finished: Path, tmp_path: Path) -> None:
    """The same seed selects the same: the run above began twice, in two processes."""
    # The first selection comes before any training.
    short = (
        POOL_DIRECTION,
        f"training.engine={TRAINER}",
        "curriculum.stages=1",
        "curriculum.steps_per_stage=1",
    )
    other = run(tiny_config(tmp_path, *short, "seed=1", "name=b"))
    place = "arms/cropi/stages/0/selection.parquet"
    first, different = (read_selection(r / place) for r in (finished, other))
    assert first.prompt_ids != different.prompt_ids


def test_every_phase_leaves_its_cost(finished: Path) -> None:
    assert_every_phase_leaves_its_cost(finished, "cropi")


def test_lora_and_warmup_run_two_stages_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        "training.lora.r=4",
        "warmup.steps=2",
        "warmup.batch_size=4",
        "curriculum.steps_per_stage=2",
        "prompts.pool=[{pocket: [sort, shift], split: pool, size: 30}]",
    )
    directory = run(tiny_config(tmp_path, *overrides))
    before = promised_bytes(directory)
    policies = [directory / f"arms/cropi/stages/{i}/policy" for i in (0, 1)]
    assert all((p / "adapter_model.safetensors").is_file() for p in policies)
    assert not any((p / "model.safetensors").exists() for p in policies)
    shared = {row["phase"]: row["tokens_backward"] for row in read_jsonl(directory / "costs.jsonl")}
    assert 2 * 4 * 5 <= shared["warmup"] <= 2 * 4 * 20

    from peft import AutoPeftModelForCausalLM

    for policy in policies:
        monkeypatch.chdir(policy)  # the base is named by its place beside the adapter
        assert AutoPeftModelForCausalLM.from_pretrained(policy) is not None
    monkeypatch.undo()
    (policies[1] / "cropi_stage.json").unlink()  # as if killed before the last rename
    (directory / "costs.jsonl").unlink()
    run(tiny_config(tmp_path, *overrides))
    assert promised_bytes(directory) == before
