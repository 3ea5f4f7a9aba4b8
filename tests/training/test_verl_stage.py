"""A stage of verl: launched, followed, merged, and carried on, with a stand-in for its programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cropi.config import (
    ModelConfig,
    RolloutsConfig,
    RunConfig,
    TrainerChoice,
    TrainingConfig,
    VerifiersConfig,
)
from cropi.curriculum.dry_run import training_commands
from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.policy.loading import load_policy
from cropi.progress import ProgressReporter
from cropi.prompts import encode
from cropi.schema import Prompt
from cropi.store.metrics import TrainRow, read_rows
from cropi.store.policy_record import is_training_state
from cropi.training import StageOutcome, StagePlan, find_trainer
from cropi.verifiers import Judge
from support.chat_model import chat_model
from support.stand_in_verl import interpreter

GRADER = """
def graded(data_source, solution_str, ground_truth, extra_info=None):
    if ground_truth == "3":
        raise ValueError("no idea")
    return 0.5 if solution_str == ground_truth else -1.0
"""
Make = Callable[..., StagePlan]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("verl")
    python, model = interpreter(folder), str(chat_model(folder / "model"))

    def plan(steps: int = 2, **engine: Any) -> StagePlan:
        prompts = [
            Prompt(f"p{n}", str(n), "sums", messages=({"role": "user", "content": f"{n}+0?"},))
            for n in range(2 * steps)
        ]
        return StagePlan(
            start=model,
            prompts=prompts,
            steps=steps,
            first_step=0,
            horizon=4,
            seed=7,
            model=ModelConfig(path=model),
            training=TrainingConfig(
                prompts_per_step=2,
                responses=2,
                engine=TrainerChoice.of("verl", python=python, gpus=2, **engine),
            ),
            rollouts=RolloutsConfig(max_new_tokens=8),
            log=folder / "logs" / "training.log",
        )

    return plan


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    (folder := tmp_path_factory.mktemp("grader")).joinpath("mine.py").write_text(GRADER)
    with Judge(VerifiersConfig(default="mine.py:graded", workers=1), folder) as judge:
        yield judge


@dataclass
class Trained:
    """Two steps, evaluated after each."""

    folder: Path
    plan: StagePlan
    outcome: StageOutcome = field(default_factory=StageOutcome)
    evaluated: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def trained(make: Make, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    stage = Trained(tmp_path_factory.mktemp("stage"), replace(make(), evaluate_every=1))
    trainer = find_trainer(stage.plan.training.engine)
    assert trainer.check(stage.plan) == []
    trainer.train(
        stage.plan,
        judge,
        stage.folder,
        lambda policy, step: stage.evaluated.append(step),
        lambda done, row: stage.steps.append(done),
        stage.outcome,
    )
    return stage


def test_steps_tokens_and_rewards_of_a_stage_are_those_of_verl(trained: Trained) -> None:
    outcome = trained.outcome
    assert trained.steps == [1, 2] == trained.evaluated
    assert [(row["step"], row["reward"]) for row in outcome.log] == [(1, -0.25), (2, -0.125)]
    assert outcome.clock == [(1, 2.0), (2, 4.0)]
    tokenizer = load_policy(trained.plan.start).tokenizer
    assert outcome.prefill_tokens == sum(len(encode(tokenizer, p)) for p in trained.plan.prompts)
    assert outcome.trained_tokens == 800
    assert outcome.generated_tokens == 800 - 2 * outcome.prefill_tokens
    assert outcome.prompts_sampled == 4


def test_every_verdict_is_counted_by_the_run(trained: Trained, judge: Judge) -> None:
    assert trained.outcome.statuses == {"ok": 6, "error": 2}
    assert judge.counts["sums"]["ok"] == 3 == judge.counts["sums"]["wrong"]
    assert "no idea" in next(iter(judge.reasons))


def test_the_policy_and_what_training_goes_on_from_are_kept_apart(trained: Trained) -> None:
    load_policy(trained.folder, device="cpu")
    files = {
        file.relative_to(trained.folder).as_posix()
        for file in trained.folder.rglob("*")
        if file.is_file()
    }
    state = {name for name in files if is_training_state(name)}
    assert "verl/global_step_2/actor/optim_world_size_2_rank_1.pt" in state
    assert "model.safetensors" in files - state
    assert not [name for name in files if "data.pt" in name or name.startswith(("work", "until"))]
    assert json.loads((trained.folder / "trainer_state.json").read_text()) == {"global_step": 2}


def test_a_later_stage_goes_on_from_the_checkpoint_and_not_without_it(
    trained: Trained, judge: Judge, tmp_path: Path
) -> None:
    later = replace(trained.plan, start=str(trained.folder), first_step=2, evaluate_every=None)
    trainer = find_trainer(later.training.engine)
    outcome = trainer.train(later, judge, tmp_path)
    assert [row["step"] for row in outcome.log] == [3, 4]
    assert (tmp_path / "verl" / "global_step_4").is_dir()
    with pytest.raises(InputError, match=r"model_world_size_2_rank_0\.pt is missing"):
        trainer.train(replace(later, first_step=1), judge, tmp_path / "other")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("fails", r"exit code 1\): RuntimeError: CUDA error: out of memory; see .*training\.log"),
        ("shuffled", "trained step 1 on prompt 'p0', and others were selected"),
        ("ends early", "trained 1 of 2 steps"),
    ],
)
def test_a_stage_that_went_wrong_is_refused_with_its_reason(
    make: Make, judge: Judge, tmp_path: Path, behaviour: str, message: str
) -> None:
    plan = make(overrides={"trainer.project_name": behaviour})
    with pytest.raises(InputError, match=message):
        find_trainer(plan.training.engine).train(plan, judge, tmp_path)


def test_no_program_outlives_a_stage_that_is_interrupted(
    make: Make, judge: Judge, tmp_path: Path
) -> None:
    plan = make(overrides={"trainer.project_name": "hangs"})
    running: list[psutil.Process] = []

    def interrupt(done: int, row: dict[str, Any]) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                running.extend([process] if "verl.trainer.main_ppo" in process.cmdline() else [])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_trainer(plan.training.engine).train(plan, judge, tmp_path, None, interrupt)
    assert running
    assert not any(process.is_running() for process in running)


def test_a_run_starts_the_programs_that_a_dry_run_shows(make: Make, tmp_path: Path) -> None:
    pocket = {"pocket": ["sort"], "chat": True}
    config = RunConfig.model_validate(
        {
            "out": str(tmp_path),
            "model": {"path": make().start},
            "prompts": {
                "pool": [{**pocket, "split": "pool", "size": 8}],
                "validation": {"sort": [{**pocket, "split": "validation", "size": 2}]},
            },
            "rollouts": {"responses": 2, "max_new_tokens": 4},
            "selection": {"strategy": "random", "ratio": 0.5},
            "curriculum": {"stages": 2, "steps_per_stage": 2},
            "training": make().training,
            "verifiers": {"default": "exact"},
            "evaluation": {"every": 2},
        }
    )
    shown = dict(training_commands(config, None, ProgressReporter()))
    assert list(shown) == ["random stage 0", "random stage 1"]
    folder = run(config)
    lines = (folder / "logs" / "training.log").read_text().splitlines()
    started = [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]
    assert started == [command for commands in shown.values() for command in commands]
    rows = read_rows(folder / "metrics.jsonl").of_kind(TrainRow)
    assert [(row.stage, row.step) for row in rows] == [(0, 1), (0, 2), (1, 3), (1, 4)]
