"""The keys of verl's config for a stage, and how Hydra reads them on a command line.

Keys and their meaning were read in verl 0.9.1. Some of its defaults would end a stage in silence:
it saves nothing, resumes what it finds, shuffles, and reports to a service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.text import shown
from cropi.training.stage import StagePlan
from cropi.training.verl_settings import DTYPES, VerlSettings

ROWS, REWARDS, METRICS, RESPONSES, CHECKPOINTS = (
    *("rows.parquet", "rewards.py", "metrics.jsonl"),
    *("responses", "checkpoints"),
)
"""Files and folders of a stage's working folder."""
STATE = "verl"
"""Folder of a policy with verl's own checkpoint."""
ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
LOSS, KL_LOSS, KL_REWARD = (
    *(f"{ACTOR}.loss_agg_mode", f"{ACTOR}.use_kl_loss"),
    "algorithm.use_kl_in_reward",
)
DEFAULT_LOSS = "seq-mean-token-mean"
NORMALISATION = {
    "seq-mean-token-mean": "sequence",
    "token-mean": "token",
    "seq-mean-token-sum": "constant",
    "seq-mean-token-sum-norm": "constant",
}
"""The objective's normalisation (docs/method.md) that matches each of verl's ways to add a loss."""
TOKENS_A_PASS = 16_384
SPANS_STAGES = (f"{ACTOR}.optim.lr_scheduler_type", f"{ACTOR}.optim.lr_warmup_steps_ratio")
"""What needs to know where the last of several stages ends, and verl has one number for both."""


NO_TEXT = ("true", "false", "null", "nan", "inf")
"""Words that Hydra reads as other values."""


def overrides_of(
    plan: StagePlan, settings: VerlSettings, work: Path, model: str, longest_prompt: int
) -> dict[str, Any]:
    """Return the keys of verl's config for a stage, the user's among them.

    `work` holds the stage's files, `model` is where its weights are, and no prompt has more than
    `longest_prompt` tokens. Raises InputError for a key of the user's that the stage decides.
    """
    decided = {
        **_data(plan, work, longest_prompt),
        **_policy(plan, model),
        **_sampling(plan),
        **_trainer_keys(plan, work),
        "trainer.n_gpus_per_node": settings.gpus,
        "trainer.nnodes": settings.nodes,
    }
    free = {
        LOSS: DEFAULT_LOSS,
        f"{ACTOR}.optim.weight_decay": 0.0,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": max(TOKENS_A_PASS, longest_prompt + plan.new_tokens),
        f"{ROLLOUT}.name": "vllm",
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
    }
    _require_free(settings, decided)
    return decided | free | settings.overrides


def _data(plan: StagePlan, work: Path, longest_prompt: int) -> dict[str, Any]:
    """The rows in their order, and who judges."""
    rows = str(work / ROWS)
    template = {
        f"++data.apply_chat_template_kwargs.{k}": v for k, v in plan.template_kwargs.items()
    }
    return {
        "data.train_files": rows,
        "data.val_files": rows,  # verl needs some; they are never evaluated
        "data.shuffle": False,
        "data.seed": _seed(plan),
        "data.train_batch_size": plan.training.prompts_per_step,
        "data.gen_batch_size": None,
        "data.train_max_samples": -1,
        "data.custom_cls.path": None,
        "data.dataloader_num_workers": 0,
        "data.max_prompt_length": longest_prompt,
        "data.max_response_length": plan.new_tokens,
        "data.filter_overlong_prompts": False,
        "data.trust_remote_code": plan.model.trust_remote_code,
        **template,
        "reward.custom_reward_function.path": str(work / REWARDS),
        "reward.custom_reward_function.name": "compute_score",
        "reward.reward_manager.name": "naive",
    }


def _policy(plan: StagePlan, model: str) -> dict[str, Any]:
    """The model, and one step of AdamW for every batch."""
    attention = plan.model.attention
    # Rows without padding between them are for flash attention alone.
    how = {
        f"++{MODEL}.override_config.attn_implementation": attention,
        f"{MODEL}.use_remove_padding": attention == "flash_attention_2",
    }
    return {
        f"{MODEL}.path": model,
        f"{MODEL}.trust_remote_code": plan.model.trust_remote_code,
        **(how if attention else {}),
        "model_engine": "dp",
        f"{MODEL}.lora_rank": 0,
        f"{ACTOR}.optim.lr": plan.training.learning_rate,
        f"{ACTOR}.fsdp_config.model_dtype": DTYPES.get(plan.training.dtype, plan.training.dtype),
        f"{ACTOR}.fsdp_config.seed": _seed(plan),
        f"{ACTOR}.data_loader_seed": _seed(plan),
        f"{ACTOR}.ppo_mini_batch_size": plan.training.prompts_per_step,
        f"{ACTOR}.ppo_epochs": 1,
        f"{ACTOR}.shuffle": False,
        f"{ACTOR}.checkpoint.save_contents": ["model", "optimizer", "extra"],
        f"{ACTOR}.checkpoint.async_save": False,
        "algorithm.adv_estimator": "grpo",
    }


def _sampling(plan: StagePlan) -> dict[str, Any]:
    return {
        f"{ROLLOUT}.n": plan.training.responses,
        f"{ROLLOUT}.temperature": plan.training.temperature or plan.rollouts.temperature,
        f"{ROLLOUT}.top_p": plan.rollouts.top_p,
        f"{ROLLOUT}.top_k": plan.rollouts.top_k or -1,
        f"{ROLLOUT}.do_sample": True,
        f"{ROLLOUT}.seed": _seed(plan),
        f"{ROLLOUT}.multi_turn.enable": False,
    }


def _trainer_keys(plan: StagePlan, work: Path) -> dict[str, Any]:
    """From which step to which, from what state, and what is written where."""
    last = plan.first_step + plan.steps
    resumed = {"trainer.resume_mode": "disable"}
    if plan.first_step:
        saved = str(Path(plan.start) / STATE / f"global_step_{plan.first_step}")
        resumed = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": saved}
    metrics = "++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"
    return {
        "trainer.total_epochs": last,  # verl counts the steps of earlier stages as epochs of this
        "trainer.total_training_steps": last,
        "trainer.save_freq": last,
        **resumed,
        "trainer.v1.trainer_mode": "sync",
        "trainer.v1.sampler.custom_sampler.path": None,
        "trainer.v1.sampler.sync_refill_failed_groups": False,
        "algorithm.filter_groups.enable": False,
        "trainer.critic_warmup": 0,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.default_local_dir": str(work / CHECKPOINTS),
        "trainer.default_hdfs_dir": None,
        "trainer.rollout_data_dir": str(work / RESPONSES),
        "trainer.logger": ["console", "file"],
        metrics: str(work / METRICS),
        "hydra.run.dir": str(work / "hydra"),
    }


def _seed(plan: StagePlan) -> int:
    """A stage that is cut where it is evaluated does not sample the same numbers again."""
    return int((plan.seed + plan.first_step) % 2**31)


def _require_free(settings: VerlSettings, decided: Mapping[str, Any]) -> None:
    """Raise InputError for a key that the stage decides."""
    values = {key.lstrip("+"): value for key, value in decided.items()}
    for written in settings.overrides:
        key, name = written.lstrip("+"), f"training.engine.overrides.{written}"
        if key in SPANS_STAGES:
            raise InputError(
                f"{name}: verl's schedules end with a stage, and a run has several; leave it out "
                f"(warm up with {ACTOR}.optim.lr_warmup_steps)"
            )
        if key in values:
            raise InputError(
                f"{name} is decided by the other settings of the run ({shown(values[key], 80)}); "
                "change those, or leave it out"
            )


def loss_of(settings: VerlSettings) -> tuple[str, bool]:
    """How the loss is added up over tokens, and whether it has a KL term."""
    overrides = settings.overrides
    loss = str(overrides.get(LOSS, DEFAULT_LOSS))
    return loss, any(overrides.get(key) is True for key in (KL_LOSS, KL_REWARD))


def arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra reads them on a command line."""
    return [f"{key}={_as_hydra(value)}" for key, value in overrides.items()]


def _as_hydra(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_hydra, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_as_hydra(each)}' for key, each in value.items())}}}"
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Text as it is where Hydra takes it for text, else in quotes.

    In quotes only backslashes before a quote, or at the end, are special.
    """
    if re.fullmatch(r"[/A-Za-z][\w/.-]*", text) and text.lower() not in NO_TEXT:
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return "'" + escaped.replace("${", "\\${") + "'"
