"""What verl is told is what the config says, and what it cannot keep is refused first."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cropi.config import LoraConfig, ModelConfig, TrainerChoice
from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.training import StagePlan, find_trainer
from cropi.training.verl_config import arguments, overrides_of
from cropi.training.verl_requirements import require_settings, warnings_of
from cropi.training.verl_settings import VerlSettings
from support.stand_in_verl import interpreter

MakePlan = Callable[..., StagePlan]
WORK = Path("/run/policy.part/work")
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture
def plan(make_plan: MakePlan) -> StagePlan:
    """Two steps of two chats, four responses each."""
    made = make_plan("pocket", 2)
    chats = [
        replace(p, prompt=None, messages=({"role": "user", "content": p.content},))
        for p in made.prompts
    ]
    return replace(made, prompts=chats, model=ModelConfig(path="pocket"))


def verl_keys(plan: StagePlan, settings: VerlSettings | None = None) -> dict[str, Any]:
    return overrides_of(plan, settings or VerlSettings(), WORK, "model", 21)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.adv_estimator", "grpo"),
        ("data.train_batch_size", 2),
        (f"{ACTOR}.ppo_mini_batch_size", 2),
        ("data.shuffle", False),
        ("data.max_prompt_length", 21),
        ("data.max_response_length", 8),
        (f"{ROLLOUT}.n", 4),
        (f"{ROLLOUT}.temperature", 1.0),
        (f"{ROLLOUT}.top_k", -1),
        (f"{ROLLOUT}.seed", 7),
        (f"{ACTOR}.optim.lr", 1e-5),
        (f"{ACTOR}.optim.weight_decay", 0.0),
        (f"{ACTOR}.fsdp_config.model_dtype", "fp32"),
        (f"{ACTOR}.loss_agg_mode", "seq-mean-token-mean"),
        ("actor_rollout_ref.model.path", "model"),
        ("trainer.total_training_steps", 2),
        ("trainer.save_freq", 2),
        ("trainer.resume_mode", "disable"),
        ("trainer.logger", ["console", "file"]),
        ("trainer.default_local_dir", f"{WORK}/checkpoints"),
        ("reward.custom_reward_function.path", f"{WORK}/rewards.py"),
    ],
)
def test_verl_is_told_what_the_config_says(plan: StagePlan, key: str, value: Any) -> None:
    assert verl_keys(plan)[key] == value


def test_settings_of_training_go_before_those_of_rollouts(plan: StagePlan) -> None:
    training = plan.training.model_copy(
        update={"temperature": 0.7, "max_new_tokens": 99, "dtype": "bfloat16"}
    )
    rollouts = plan.rollouts.model_copy(update={"top_k": 20, "top_p": 0.9})
    model = ModelConfig(path="m", attention="sdpa", trust_remote_code=True)
    options = {"enable_thinking": False}
    values = verl_keys(
        replace(plan, training=training, rollouts=rollouts, model=model, template_kwargs=options)
    )
    assert values[f"{ROLLOUT}.temperature"] == 0.7
    assert (values[f"{ROLLOUT}.top_k"], values[f"{ROLLOUT}.top_p"]) == (20, 0.9)
    assert values["data.max_response_length"] == 99
    assert values[f"{ACTOR}.fsdp_config.model_dtype"] == "bf16"
    assert values["++data.apply_chat_template_kwargs.enable_thinking"] is False
    assert values["actor_rollout_ref.model.trust_remote_code"] is True
    assert values["++actor_rollout_ref.model.override_config.attn_implementation"] == "sdpa"
    assert values["actor_rollout_ref.model.use_remove_padding"] is False


def test_a_later_stage_resumes_and_ends_where_it_should(plan: StagePlan) -> None:
    values = verl_keys(replace(plan, start="/run/0/policy", first_step=2))
    assert values["trainer.resume_from_path"] == "/run/0/policy/verl/global_step_2"
    assert values["trainer.total_training_steps"] == values["trainer.save_freq"] == 4
    assert values["trainer.total_epochs"] > (4 - 1) // 2, "verl would end before the last step"
    assert values[f"{ROLLOUT}.seed"] != verl_keys(plan)[f"{ROLLOUT}.seed"]


def test_overrides_are_keys_of_verl_however_they_are_nested(plan: StagePlan) -> None:
    nested = {"trainer": {"project_name": "a", "v1": {"x.y": 1}}, "+data.extra": {"k": [1]}}
    settings = VerlSettings(overrides=nested)
    flat = {"trainer.project_name": "a", "trainer.v1.x.y": 1, "+data.extra.k": [1]}
    assert settings.overrides == flat
    assert flat.items() <= verl_keys(plan, settings).items()
    free = VerlSettings(overrides={f"{ACTOR}.optim.weight_decay": 0.1})
    assert verl_keys(plan, free)[f"{ACTOR}.optim.weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"a b": 1}, "'a b' is not a key of verl's config"),
        ({"trainer.seed": 1, "trainer": {"seed": 2}}, "trainer.seed appears twice"),
    ],
)
def test_what_is_no_key_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainerChoice.of("verl", overrides=overrides)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.shuffle", r"decided by the other settings of the run \(False\)"),
        ("+algorithm.filter_groups.enable", "decided by the other settings"),
        (f"{ACTOR}.optim.lr", r"\(1e-05\); change those, or leave it out"),
        (f"{ACTOR}.optim.lr_scheduler_type", "schedules end with a stage"),
    ],
)
def test_an_override_of_what_the_run_decides_is_refused(
    plan: StagePlan, key: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"overrides\.{key.replace('+', '.')}.*{message}"):
        verl_keys(plan, VerlSettings(overrides={key: True}))


def test_values_are_written_as_hydra_reads_them() -> None:
    values = {
        "a": "it's",
        "b": "back\\slash\\",
        "c": "${x}",
        "d": None,
        "e": [1e-6, "x", True],
        "f": {"k": "v v"},
        "g": "/a-b/c_1.pt",
        "h": "Null",
        "i": "1e5",
    }
    written = ["a='it\\'s'", "b='back\\slash\\\\'", "c='\\${x}'", "d=null"]
    assert arguments(values) == [
        *written,
        *("e=[1e-06,x,true]", "f={k:'v v'}", "g=/a-b/c_1.pt", "h='Null'", "i='1e5'"),
    ]


@pytest.mark.parametrize(
    ("training", "model", "settings", "message"),
    [
        ({"lora": LoraConfig()}, {}, {}, "leave training.lora out"),
        ({"dtype": "auto"}, {}, {}, "needs training.dtype float32 or bfloat16"),
        ({}, {}, {"gpus": 3}, "has 3 GPUs, which do not divide a step of 8 responses"),
        ({}, {"device": "cpu"}, {}, "trains on GPUs, and model.device = cpu"),
        ({}, {"device": "cuda:1"}, {}, "model.device = cuda:1"),
        ({}, {"revision": "main"}, {}, "takes no revision"),
        ({}, {}, {"nodes": 2}, "only where training.engine.address"),
    ],
)
def test_a_setting_that_verl_cannot_keep_is_refused(
    plan: StagePlan,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
    model: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_settings(plan, VerlSettings(gpus=2))
    changed = replace(
        plan,
        training=plan.training.model_copy(update=training),
        model=plan.model.model_copy(update=model),
    )
    with pytest.raises(InputError, match=message):
        require_settings(changed, VerlSettings(**settings))


USER = {"role": "user", "content": "2+2?"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("p", "4", "s", prompt="2+2="), "'p' is text; set chat: true"),
        (Prompt("p", "4", "s", messages=(USER,), tools=({"function": {}},)), "one with tools"),
        (Prompt("p", "4", "s", messages=({**USER, "name": "Ann"},)), "has name too"),
        (
            Prompt("p", "4", "s", messages=(USER, {"role": "assistant", "content": "It"})),
            "an answer that is begun",
        ),
    ],
)
def test_a_prompt_that_verl_would_change_is_refused(
    plan: StagePlan, prompt: Prompt, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_settings(replace(plan, prompts=[*plan.prompts, prompt]), VerlSettings())
    with pytest.raises(InputError, match="dynamic sampling"):
        require_settings(replace(plan, dynamic_sampling=True), VerlSettings())


def test_another_loss_than_that_of_influence_is_told(plan: StagePlan) -> None:
    assert warnings_of(plan, VerlSettings()) == []
    other = {f"{ACTOR}.loss_agg_mode": "token-mean", f"{ACTOR}.use_kl_loss": True}
    mean, kl = warnings_of(plan, VerlSettings(overrides=other))
    assert "loss_agg_mode token-mean goes with influence.objective.normalisation=token" in mean
    assert "prompts are ranked as if there were no KL term" in kl


def test_an_interpreter_without_verl_or_gpus_is_refused_before_any_work(
    plan: StagePlan, tmp_path: Path
) -> None:
    def check(python: str, gpus: int = 1) -> None:
        engine = TrainerChoice.of("verl", python=python, gpus=gpus)
        training = plan.training.model_copy(update={"engine": engine})
        find_trainer(engine).check(replace(plan, training=training))

    check(interpreter(tmp_path))
    with pytest.raises(InputError, match=r"gpus = 4, and verl's interpreter sees 2 GPUs"):
        check(interpreter(tmp_path), 4)
    with pytest.raises(InputError, match="/nowhere/python is not an interpreter"):
        check("/nowhere/python")
    if importlib.util.find_spec("verl") is None:
        with pytest.raises(InputError, match="needs verl in the interpreter"):
            check(sys.executable)
    (broken := tmp_path / "broken").write_text("#!/bin/sh\necho 'ImportError: no CUDA' >&2\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match=r"does not work, .*\(ImportError: no CUDA\)"):
        check(str(broken))
