"""What a user's training engine leaves is checked before a stage is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.training import StageOutcome, StagePlan, find_trainer, train
from cropi.training.settings import TrainerChoice, TrainingConfig
from cropi.verifiers import Judge
from support.tiny_runs import untrained

MakePlan = Callable[..., StagePlan]
TRAINER = """
import shutil, sys
from dataclasses import replace
import numpy as np, torch
from cropi.policy.loading import load_policy
from cropi.training import StageOutcome
from safetensors.torch import load_file, save_file
from support.fakes import FakeTrainer

def change_weights(out, change):
    weights = load_file(out / "model.safetensors")
    for name in weights:
        weights[name] = change(weights[name])
    save_file(weights, out / "model.safetensors", {"format": "pt"})

class Mine(FakeTrainer):
    def check(self, plan):
        return WARNINGS

    def train(self, plan, judge, out, evaluate=None, progress=None, outcome=None):
        outcome = super().train(plan, judge, out, evaluate, progress, outcome)
        CHANGE
        return outcome
"""


def trainer_in(file: Path, change: str = "pass", warnings: str = "[]") -> TrainerChoice:
    file.write_text(TRAINER.replace("CHANGE", change).replace("WARNINGS", warnings))
    return TrainerChoice.of(f"{file}:Mine")


@pytest.fixture
def plan(make_plan: MakePlan) -> StagePlan:
    return make_plan(untrained(), 2)


@pytest.mark.parametrize(("change", "message"), [
    ("raise RuntimeError('a GPU fell off')", r"raised RuntimeError: a GPU fell off \(line"),
    ("sys.exit(3)", r"raised SystemExit: 3 \(line \d+ of .*mine.py\); correct it"),
    ("return 'done'", "returned 'done'; it must return the outcome"),
    ("shutil.rmtree(out); out.mkdir()", r"folder no policy \(directory .* lacks config"),
    ("(out / 'model.safetensors').unlink()", r"no policy \(.* lacks weights"),
    ("(out / 'model.safetensors').write_bytes(b'cut')", "model.safetensors, which cannot be read"),
    ("(out / 'config.json').write_text('{')", "a config.json that is no JSON"),
    ("change_weights(out, lambda w: w * np.nan)", "the weight .*, whose largest value is nan"),
    ("change_weights(out, lambda w: w * np.inf)", "the weight .*, whose largest value is"),
    ("change_weights(out, lambda w: w[:1].clone())",
     r"the weight .* of shape \[.*\], where the policy to train has \["),
    ("load_policy('pocket').model.save_pretrained(out)",
     "a model whose hidden_size is .*, where the policy to train has 32"),
    ("outcome.log[0]['step'] = 9", "gave the row of a log the step 9; give steps .* 1 to 2"),
    ("outcome.log[0]['step'] = 1.5", "gave the row of a log the step 1.5"),
    ("del outcome.log[0]['step']", "logged {.*; every row must be a dict with its step"),
    ("outcome.log[0]['loss'] = [1, 2]", r"logged loss = \[1, 2\]; log numbers"),
    ("outcome.log = None", "left outcome.log = None; give a list"),
    ("outcome.clock = [3.5]", r"left 3.5 in outcome.clock; give \(step, seconds\)"),
    ("outcome.clock = [(1, np.nan)]", "in outcome.clock"),
    ("outcome.generated_tokens = -1", "left outcome.generated_tokens = -1; give a whole number"),
    ("outcome.trained_tokens = None", "left outcome.trained_tokens = None"),
    ("outcome.prompts_sampled = 5", "sampled 5 of the plan's 4 prompts"),
    ("outcome.statuses = {'ok': 0.5}", r"left outcome.statuses\['ok'\] = 0.5"),
    ("outcome.rollouts = [{'prompt': 1}]", "left {'prompt': 1} in outcome.rollouts; give Rollout"),
    ("outcome.rollouts[0].prompt_id = 'elsewhere'",
     "left a group of the prompt 'elsewhere' in outcome.rollouts, which the stage does not train"),
    ("outcome.rollouts[0].responses[0].logprobs[0] = 0.5", "unusable rollouts: .* above 0"),
    ("outcome.rollouts[0].responses[0].logprobs[0] = np.nan", "unusable rollouts: .* NaN"),
    ("outcome.rollouts[0].responses[0].ids[0] = -1", "unusable rollouts: .* negative token id"),
    ("outcome.rollouts[0].responses[0].reward = 1e30", "unusable rollouts: .* reward"),
    ("outcome.rollouts[0].responses[0] = None", "unusable rollouts: .* cannot be stored"),
    ("progress(99, {})", "called progress.* with done = 99; give the steps .* up to 2"),
    ("progress(1, {'loss': 1.0})", "logged {'loss': 1.0}; every row"),
    ("evaluate(load_policy(out), 7)", r"gave evaluate\(policy, step\) the step 7"),
])  # fmt: skip
def test_what_a_trainer_leaves_that_no_run_can_go_on_with_is_refused(
    plan: StagePlan, judge: Judge, tmp_path: Path, change: str, message: str
) -> None:
    trainer, out = find_trainer(trainer_in(tmp_path / "mine.py", change)), tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=f"training engine '.*mine.py:Mine': train.*{message}"):
        trainer.train(plan, judge, out, lambda *_: None, lambda *_: None, StageOutcome())


@pytest.mark.parametrize("warnings", ["None", "'text'", "[3]"])
def test_warnings_are_a_list_of_sentences(plan: StagePlan, tmp_path: Path, warnings: str) -> None:
    trainer = find_trainer(trainer_in(tmp_path / "mine.py", warnings=warnings))
    with pytest.raises(InputError, match=r"check returned .*; it must return a list of warnings"):
        trainer.check(plan)


def test_numbers_of_any_kind_become_plain_ones(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    change = (
        "outcome.log[0] |= {'step': np.int64(1), 'loss': torch.tensor(2.0), 'lr': np.float32(0.5)}"
        "; outcome.generated_tokens = np.int32(7)"
    )
    outcome, out = StageOutcome(), tmp_path / "out"
    out.mkdir()
    trainer = find_trainer(trainer_in(tmp_path / "mine.py", change))
    assert trainer.train(plan, judge, out, outcome=outcome) is outcome
    row = outcome.log[0]
    assert (row["step"], row["loss"], row["lr"]) == (1, 2.0, 0.5)
    assert {type(each) for each in row.values()} <= {int, float}
    assert type(outcome.generated_tokens) is int


def test_an_outcome_of_the_trainers_own_fills_the_one_it_was_given(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    outcome, out = StageOutcome(), tmp_path / "out"
    out.mkdir()
    change = "outcome, given = replace(outcome), outcome; given.log = []"
    find_trainer(trainer_in(tmp_path / "mine.py", change)).train(plan, judge, out, outcome=outcome)
    assert [row["step"] for row in outcome.log] == [1, 2]


def test_a_stage_that_is_refused_leaves_nothing_and_is_trained_again(
    prompts: Sequence[Prompt], judge: Judge, tmp_path: Path
) -> None:
    ids, out = [prompt.prompt_id for prompt in prompts[:4]], tmp_path / "stage"
    settings = TrainingConfig(prompts_per_step=2, responses=4)

    def stage(name: str, change: str) -> StageOutcome:
        engine = trainer_in(tmp_path / f"{name}.py", change)
        chosen = settings.model_copy(update={"engine": engine})
        return train(untrained(), prompts, ids, out, chosen, steps=2, verifier=judge)

    with pytest.raises(InputError, match="whose largest value is nan"):
        stage("broken", "change_weights(out, lambda w: w * np.nan)")
    assert not out.exists()
    assert replace(stage("mended", "pass"), clock=[]).prompts_sampled == 4
    assert (out / "model.safetensors").is_file()
