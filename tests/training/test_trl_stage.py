"""A stage of TRL trains what it was given, and the next one continues exactly where it ended."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from cropi.config import TrainingConfig
from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.training import StageOutcome, StagePlan, find_trainer
from cropi.training.divergence import reraise_divergence
from cropi.training.grpo_keys import check_grpo_settings
from cropi.training.rewards import JudgedRewards
from cropi.training.stage import reraise_disk_errors
from cropi.training.trl_config import grpo_config
from cropi.training.trl_stage import require_training_state
from cropi.verifiers import Judge
from support.trained_stage import train

MakePlan = Callable[..., StagePlan]


def adam_steps(checkpoint: Path) -> set[float]:
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return {float(row["step"]) for row in state.values()}


@pytest.fixture(scope="module")
def stages(
    make_plan: MakePlan, judge: Judge, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, StageOutcome]]:
    """Four steps in one stage, and the same in two stages of two."""
    folder = tmp_path_factory.mktemp("stages")
    whole, first, second = folder / "whole", folder / "first", folder / "second"
    return {
        "whole": (whole, train(make_plan("pocket", 4), judge, whole)),
        "first": (first, train(make_plan("pocket", 2), judge, first)),
        "second": (second, train(make_plan(str(first), 2, first_step=2), judge, second)),
    }


def test_optimizer_and_schedule_are_carried_over(
    stages: dict[str, tuple[Path, StageOutcome]],
) -> None:
    rates = {name: [row["learning_rate"] for row in o.log] for name, (_, o) in stages.items()}
    assert rates["whole"] == pytest.approx([1e-5, 7.5e-6, 5e-6, 2.5e-6])
    assert rates["first"] + rates["second"] == rates["whole"]
    steps = {name: adam_steps(path) for name, (path, _) in stages.items()}
    assert steps == {"whole": {4.0}, "first": {2.0}, "second": {4.0}}


def test_where_a_stage_ends_changes_none_of_its_steps(
    stages: dict[str, tuple[Path, StageOutcome]],
) -> None:
    whole, first = stages["whole"][1].log, stages["first"][1].log
    assert whole[:2] == first
    assert all(row["grad_norm"] > 0 for row in first)


def test_steps_are_counted_over_all_stages(
    stages: dict[str, tuple[Path, StageOutcome]],
) -> None:
    assert [step for step, _ in stages["second"][1].clock] == [3, 4]
    assert [row["step"] for row in stages["second"][1].log] == [3, 4]


@pytest.mark.parametrize("steps", [1, 2])
def test_training_that_diverges_ends_with_the_step_and_what_to_lower(
    make_plan: MakePlan, judge: Judge, tmp_path: Path, steps: int
) -> None:
    plan = make_plan("pocket", steps)
    plan = replace(plan, training=plan.training.model_copy(update={"learning_rate": 1e10}))
    message = r"training diverged at step 1: .*; lower training.learning_rate \(now 1e\+10\)"
    with pytest.raises(InputError, match=message):
        train(plan, judge, tmp_path / "out")


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_response_that_the_context_has_no_room_for_is_refused(
    make_plan: MakePlan, judge: Judge, tmp_path: Path, dynamic: bool
) -> None:
    plan = replace(make_plan("pocket", 1), dynamic_sampling=dynamic)
    longer = replace(plan, rollouts=plan.rollouts.model_copy(update={"max_new_tokens": 64}))
    with pytest.raises(InputError, match=r"max_new_tokens 64 it exceeds the model's context of 64"):
        train(longer, judge, tmp_path / "out")


def test_training_that_does_not_fit_in_memory_names_what_to_lower(
    make_plan: MakePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trl.GRPOTrainer.training_step", no_memory)
    with pytest.raises(InputError, match=r"lower .*per_device_train_batch_size \(now 8\).*lora"):
        train(make_plan("pocket", 1), judge, tmp_path / "out")


def test_a_policy_that_cannot_be_sampled_from_is_a_divergence() -> None:
    probabilities = torch.tensor([math.nan, 1.0])
    with (
        pytest.raises(InputError, match=r"training diverged at step 4: .*warmup\.learning_rate"),
        reraise_divergence(lambda: 3, "warmup.learning_rate", 1.0),
    ):
        torch.multinomial(probabilities, 1)
    with pytest.raises(RuntimeError, match="another"), reraise_divergence(lambda: 3, "key", 1.0):
        raise RuntimeError("another")


def test_a_kl_term_that_influence_lacks_is_reported(make_plan: MakePlan) -> None:
    plan = make_plan("pocket", 1, beta=0.1)
    (note,) = find_trainer(plan.training.engine).check(plan)
    assert "beta = 0.1 adds a KL term" in note
    plain = make_plan("pocket", 1)
    assert find_trainer(plain.training.engine).check(plain) == []


def test_tokens_count_prompts_once_per_group_sampled_and_once_per_response_trained(
    stages: dict[str, tuple[Path, StageOutcome]], prompts: list[Prompt]
) -> None:
    outcome = stages["whole"][1]
    prefill = sum(len(p.content) for p in prompts)  # one token per character
    assert outcome.generated_tokens > 0
    assert outcome.prefill_tokens == prefill
    assert outcome.trained_tokens == outcome.generated_tokens + prefill * 4
    assert (outcome.prompts_sampled, outcome.uninformative_trained) == (len(prompts), 0)
    assert sum(outcome.statuses.values()) == len(prompts) * 4


def test_checkpoints_load_with_from_pretrained(
    stages: dict[str, tuple[Path, StageOutcome]],
) -> None:
    for path, _ in stages.values():
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.dtype == torch.float32
        assert AutoTokenizer.from_pretrained(path).eos_token_id == 1
        assert not list(path.glob("trainer/*"))


def test_evaluating_changes_nothing_in_training(
    stages: dict[str, tuple[Path, StageOutcome]], make_plan: MakePlan, judge: Judge, tmp_path: Path
) -> None:
    from cropi.rollouts import load_engine
    from cropi.schema import Sampling

    seen: list[int] = []

    def evaluate(policy: Any, step: int) -> None:
        seen.append(step)
        engine = load_engine("transformers", policy)
        engine.generate([[30, 5, 6]], Sampling(1.0, max_new_tokens=4), 4, step)

    plan = replace(make_plan("pocket", 4), evaluate_every=3)
    train(plan, judge, tmp_path / "out", evaluate=evaluate)
    assert seen == [3, 4]
    bytes_without = (stages["whole"][0] / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == bytes_without


def test_smaller_device_batches_are_the_same_steps(
    make_plan: MakePlan, judge: Judge, tmp_path: Path
) -> None:
    plan = make_plan("pocket", 2, per_device_train_batch_size=4)
    outcome = train(plan, judge, tmp_path / "out")
    assert [row["step"] for row in outcome.log] == [1, 2]
    assert adam_steps(tmp_path / "out") == {2.0}


def test_a_trainer_that_reorders_prompts_is_detected(
    make_plan: MakePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = JudgedRewards._prompt_of_each_group
    monkeypatch.setattr(JudgedRewards, "_prompt_of_each_group", lambda *a: honest(*a)[::-1])
    with pytest.raises(AssertionError, match="in another order"):
        train(make_plan("pocket", 2), judge, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_such": 1}, "no such"),
        ({"learning_rate": 1}, r"training\.learning_rate"),
        ({"num_generations": 2}, r"training\.responses"),
        ({"steps_per_generation": 2}, "prompts_per_step"),
        ({"save_strategy": "steps"}, "saved at its end"),
        ({"shuffle_dataset": True}, r"cannot be set .*order is kept.*leave it out"),
        ({"loss_type": "gppo"}, "unknown to TRL"),
    ],
)
def test_settings_decided_elsewhere_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_grpo_settings(settings)


@pytest.mark.parametrize(
    ("loss", "normalisation", "warnings"),
    [
        ("grpo", "sequence", 0),
        ("grpo", "token", 1),
        ("dapo", "token", 0),
        ("bnpo", "sequence", 1),
        ("dr_grpo", "constant", 0),
        ("dr_grpo", "sequence", 1),
        ("sapo", "sequence", 0),
    ],
)
def test_a_loss_that_is_not_the_objective_is_reported(
    make_plan: MakePlan, loss: str, normalisation: str, warnings: int
) -> None:
    plan = replace(make_plan("pocket", 2, loss_type=loss), normalisation=normalisation)
    assert len(find_trainer(plan.training.engine).check(plan)) == warnings


def test_a_package_that_trl_would_need_later_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cropi.training.grpo_keys.find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the package vllm"):
        check_grpo_settings({"use_vllm": True})
    check_grpo_settings({"use_vllm": False})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), errno.ENOSPC),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), errno.ENOSPC),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), errno.EROFS),
    ],
)
def test_a_failed_write_is_an_os_error_whichever_library_wrote(error: Exception, code: int) -> None:
    with pytest.raises(OSError, match=os.strerror(code)) as caught, reraise_disk_errors():
        raise error
    assert caught.value.errno == code


@pytest.mark.parametrize("error", [RuntimeError("a defect"), SafetensorError("bad header")])
def test_a_defect_stays_a_defect(error: Exception) -> None:
    with pytest.raises(type(error)), reraise_disk_errors():
        raise error


def test_every_grpo_setting_reaches_trl(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan("pocket", 2)
    config = grpo_config(plan, tmp_path, {"beta": 0.5, "epsilon": 0.1})
    assert (config.beta, config.epsilon) == (0.5, 0.1)
    assert (config.loss_type, config.shuffle_dataset) == ("grpo", False)


def test_an_engine_that_cannot_train_is_refused() -> None:
    with pytest.raises(InputError, match="unknown training engine 'nosuch'"):
        find_trainer("nosuch")
    with pytest.raises(InputError, match="is not a training engine"):
        find_trainer("os:path")
    assert TrainingConfig().engine.name == "trl"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "a bit", "text"])
def test_training_goes_on_from_a_whole_checkpoint_or_not_at_all(
    stages: dict[str, tuple[Path, StageOutcome]], tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(stages["first"][0], tmp_path / "copy")
    require_training_state(tmp_path / "copy")
    file = tmp_path / "copy" / name
    content = bytearray(file.read_bytes())
    # In the pickle, which the archive holds first, behind its header.
    content[200] ^= 1
    changed = {"cut off": bytes(content[: len(content) // 2]), "text": b"x" * 500}
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(changed.get(damage, bytes(content)))
    with pytest.raises(InputError, match=rf"{file.stem}.* is (damaged|missing).*fresh optimizer"):
        require_training_state(tmp_path / "copy")
