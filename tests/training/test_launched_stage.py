"""A stage in several processes trains what a stage in one does, and ends with the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cropi.config import TrainerChoice
from cropi.errors import InputError
from cropi.training import StageOutcome, StagePlan, find_trainer, launcher
from cropi.training.launcher import accelerate_config, launch_command
from cropi.training.settings import LaunchSettings
from cropi.training.stage_parts import stage_parts_of
from cropi.training.trl_stage import require_training_state
from cropi.verifiers import Judge
from support.process_checks import eventually

MakePlan = Callable[..., StagePlan]


def launched(plan: StagePlan, **launch: Any) -> StagePlan:
    grpo = plan.training.engine.settings.model_dump()["grpo"]
    engine = TrainerChoice.of("trl", grpo=grpo, launch={"processes": 2, **launch})
    return replace(plan, training=plan.training.model_copy(update={"engine": engine}))


def workers() -> list[psutil.Process]:
    """The processes that training has started, directly or not."""
    below = psutil.Process().children(recursive=True)
    return [each for each in below if each.is_running() and _runs_a_stage(each)]


def _runs_a_stage(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return launcher.WORKER in command and "accelerate.commands.launch" not in command


@dataclass
class Trained:
    """Two steps in two processes, evaluated after each."""

    folder: Path
    plan: StagePlan
    counts: dict[str, int]
    outcome: StageOutcome = field(default_factory=StageOutcome)
    evaluated: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def trained(make_plan: MakePlan, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    plan = replace(launched(make_plan("pocket", 2)), evaluate_every=1)
    stage = Trained(tmp_path_factory.mktemp("stage"), plan, {})
    before = sum(sum(each.values()) for each in judge.counts.values())
    trainer = find_trainer(plan.training.engine)
    assert trainer.check(plan) == []
    with pytest.MonkeyPatch.context() as patch:
        temporary = tmp_path_factory.mktemp("temporary")
        patch.setenv("TMPDIR", str(temporary))
        trainer.train(
            plan,
            judge,
            stage.folder,
            lambda policy, step: stage.evaluated.append(step),
            lambda done, row: stage.steps.append(done),
            stage.outcome,
        )
        stage.left = [each.name for each in temporary.iterdir()]
    stage.counts["judged"] = sum(sum(c.values()) for c in judge.counts.values()) - before
    return stage


def test_two_processes_train_on_the_prompts_of_one_in_their_order(trained: Trained) -> None:
    groups = trained.outcome.rollouts
    assert [group.prompt_id for group in groups] == [p.prompt_id for p in trained.plan.prompts]
    assert [group.policy.step for group in groups] == [0, 0, 1, 1]
    assert all(len(group.responses) == 4 for group in groups)


def test_nothing_stays_among_temporary_files(trained: Trained) -> None:
    assert [name for name in trained.left if "torchelastic" in name or "cropi" in name] == []


def test_every_response_is_judged_and_counted_once(trained: Trained) -> None:
    outcome = trained.outcome
    assert (
        trained.counts["judged"] == sum(outcome.statuses.values()) == len(trained.plan.prompts) * 4
    )
    assert outcome.generated_tokens == sum(group.tokens for group in outcome.rollouts)
    assert outcome.prefill_tokens == sum(len(p.content) for p in trained.plan.prompts)
    assert outcome.prompts_sampled == len(trained.plan.prompts)


def test_steps_log_and_clock_are_those_of_the_stage(trained: Trained) -> None:
    assert trained.steps == [1, 2] == trained.evaluated
    assert [row["step"] for row in trained.outcome.log] == [1, 2]
    assert [row["learning_rate"] for row in trained.outcome.log] == pytest.approx([1e-5, 7.5e-6])
    assert all(row["grad_norm"] > 0 for row in trained.outcome.log)
    seconds = [each for _, each in trained.outcome.clock]
    assert seconds == sorted(seconds)


def test_the_optimizer_is_carried_past_an_evaluation(trained: Trained) -> None:
    require_training_state(trained.folder)
    state = torch.load(trained.folder / "optimizer.pt", weights_only=True)["state"]
    assert {float(row["step"]) for row in state.values()} == {2.0}
    assert all(
        torch.isfinite(w).all() for w in load_file(trained.folder / "model.safetensors").values()
    )
    assert not [each for each in trained.folder.iterdir() if each.is_dir()]


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Workers that wait, started as a stage's are; returns the path that they import from."""
    (tmp_path / "waits.py").write_text(WAITS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(launcher, "WORKER", "waits")
    return os.environ["PYTHONPATH"]


def test_a_process_that_is_killed_ends_the_stage_and_the_others(
    make_plan: MakePlan, judge: Judge, tmp_path: Path
) -> None:
    plan = launched(make_plan("pocket", 2, horizon=400))
    # So many steps that the processes still train, however late they are looked at.
    plan = replace(plan, prompts=plan.prompts * 200, steps=400, log=tmp_path / "training.log")
    (out := tmp_path / "out").mkdir()

    def kill_the_last(done: int, row: dict[str, Any]) -> None:
        assert len(workers()) == 2
        workers()[-1].kill()

    with pytest.raises(InputError, match=r"2 training processes ended .*training\.log"):
        find_trainer(plan.training.engine).train(plan, judge, out, None, kill_the_last)
    assert workers() == []


HOLDS = """
import sys, time
from pathlib import Path
from cropi.execution import Program
program = Program(sys.argv[2:], Path(sys.argv[1]))
time.sleep(600)
"""
WAITS = """
import os, signal, sys, time
from cropi.execution.program import end_with_parent
end_with_parent(signal.SIGKILL)
open(os.path.join(sys.argv[1], os.environ["RANK"] + ".pid"), "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["run", "launcher"])
def test_no_process_outlives_the_run_or_the_launcher(
    waiting: str, tmp_path: Path, killed: str
) -> None:
    (config := tmp_path / "accelerate.yaml").write_text(
        yaml.safe_dump(accelerate_config(LaunchSettings(processes=2)))
    )
    command = launch_command(config, 2, tmp_path)
    run = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "log"), *command],
        env={**os.environ, "PYTHONPATH": waiting},
    )
    eventually(lambda: len([f for f in tmp_path.glob("*.pid") if f.read_text()]) == 2)
    started = [psutil.Process(int(file.read_text())) for file in tmp_path.glob("*.pid")]
    (run if killed == "run" else started[0].parent()).kill()
    try:
        eventually(lambda: not any(process.is_running() for process in started))
    finally:
        run.kill()
        run.wait()


def test_a_stage_is_cut_where_it_is_evaluated(make_plan: MakePlan) -> None:
    plan = replace(make_plan("pocket", 2, first_step=0), evaluate_every=1)
    whole = list(stage_parts_of(plan, evaluated=False))
    assert whole == [plan]
    parts = list(stage_parts_of(plan, evaluated=True))
    assert [(part.first_step, part.steps) for part in parts] == [(0, 1), (1, 1)]
    assert [p for part in parts for p in part.prompts] == list(plan.prompts)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (None, "cannot be read"),
        ("- a\n", "has no distributed_type"),
        ("distributed_type: MULTI_CPU\n", "starts no processes here; give MULTI_GPU"),
        ("distributed_type: MULTI_GPU\nnum_machines: 4\n", "num_machines = 4"),
        ("distributed_type: [\n", "cannot be read"),
    ],
)
def test_a_config_that_cannot_be_launched_is_refused(
    tmp_path: Path, config: str | None, part: str
) -> None:
    file = tmp_path / "accelerate.yaml"
    if config is not None:
        file.write_text(config)
    with pytest.raises(InputError, match=part):
        accelerate_config(LaunchSettings(processes=2, config=str(file)))


def test_what_several_processes_cannot_do_is_refused_before_any_work(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = launched(make_plan("pocket", 2))
    with pytest.raises(InputError, match="does not go with dynamic sampling"):
        find_trainer(plan.training.engine).check(replace(plan, dynamic_sampling=True))
    three = launched(plan, processes=3)
    with pytest.raises(InputError, match=r"processes = 3 does not divide a step of 8"):
        find_trainer(three.training.engine).check(three)
    batches = launched(make_plan("pocket", 2, per_device_train_batch_size=8))
    with pytest.raises(InputError, match="of which a process has 4"):
        find_trainer(batches.training.engine).check(batches)
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump({"distributed_type": "FSDP"}))
    sharded = launched(plan, config=str(tmp_path / "fsdp.yaml"))
    with pytest.raises(InputError, match="accelerate ignores without GPUs"):
        find_trainer(sharded.training.engine).check(sharded)


def test_an_optimizer_that_was_saved_otherwise_is_refused(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"optimizer\.bin is missing"):
        require_training_state(trained.folder, "FSDP")
