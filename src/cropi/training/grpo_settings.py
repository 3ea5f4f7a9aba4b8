"""From the settings of a run to TRL's GRPOConfig, and the settings that are refused there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from cropi.errors import InputError
from cropi.policy.loading import resolve_device
from cropi.training.dynamic import check_dynamic
from cropi.training.stage import StagePlan

RESERVED_KEYS = {
    "num_generations": "training.responses",
    "max_steps": "curriculum.steps_per_stage and curriculum.stages",
    "num_train_epochs": "curriculum.steps_per_stage and curriculum.stages",
    "learning_rate": "training.learning_rate",
    "temperature": "training.temperature",
    "max_completion_length": "training.max_new_tokens",
    "seed": "the run's seed",
    "output_dir": "out",
    "gradient_accumulation_steps": "training.engine.grpo.per_device_train_batch_size",
    "auto_find_batch_size": "training.engine.grpo.per_device_train_batch_size",
    "steps_per_generation": "training.prompts_per_step (every step samples its own prompts)",
    "generation_batch_size": "training.prompts_per_step (every step samples its own prompts)",
    "num_iterations": "training.prompts_per_step (every step samples its own prompts)",
    "save_strategy": "curriculum.steps_per_stage (a stage is saved at its end)",
    "save_steps": "curriculum.steps_per_stage (a stage is saved at its end)",
    "eval_strategy": "evaluation.every",
    "eval_steps": "evaluation.every",
    "chat_template_kwargs": "prompts.chat_template_kwargs",
    "reward_weights": "the weights of verifiers",
    "model_init_kwargs": "model",
    "trust_remote_code": "model.trust_remote_code",
    "use_cpu": "model.device",
}

FIXED_KEYS = {
    "shuffle_dataset": "the selection's order is kept",
    "ignore_data_skip": "stages are resumed whole",
    "resume_from_checkpoint": "stages are resumed whole",
    "save_only_model": "the next stage needs the optimizer",
    "load_best_model_at_end": "the next stage continues from the last step",
    "remove_unused_columns": "the rewards need every column",
}
"""Settings of GRPOConfig that cannot be changed, with the reason."""

PACKAGES = {"use_vllm": "vllm", "use_liger_kernel": "liger_kernel"}
"""Packages that TRL asks for only when it trains, by the setting that needs them."""

NORMALISATION = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
"""The objective's normalisation (docs/method.md) that matches each loss of TRL."""


def check_grpo_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `grpo` key that GRPOConfig lacks or that is set elsewhere."""
    allowed = {f.name: f for f in fields(GRPOConfig)}
    for key, value in settings.items():
        if key in RESERVED_KEYS:
            raise InputError(
                f"training.engine.grpo.{key} = {value!r} is decided by "
                f"{RESERVED_KEYS[key]}; set it there"
            )
        if key in FIXED_KEYS:
            raise InputError(
                f"training.engine.grpo.{key} = {value!r} cannot be set ({FIXED_KEYS[key]}); "
                "leave it out"
            )
        if key not in allowed:
            raise InputError(
                f"training.engine.grpo.{key} = {value!r}: this version of TRL's GRPOConfig has no "
                "such setting; see its documentation for the names"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"training.engine.grpo.{key} = {value} is not a finite number; give one, or leave "
                "the setting out"
            )
    for key, package in PACKAGES.items():
        if settings.get(key) and find_spec(package) is None:
            raise InputError(
                f"training.engine.grpo.{key} = {settings[key]!r} needs the package {package}, "
                "which is not installed; install it, or leave the setting out"
            )
    # TRL itself notices an unknown loss at the first step; its help names those it has.
    loss, help_text = settings.get("loss_type"), allowed["loss_type"].metadata.get("help", "")
    if loss is not None and help_text and f"'{loss}'" not in help_text:
        raise InputError(
            f"training.engine.grpo.loss_type = {loss!r} is unknown to TRL; {help_text[:160]}"
        )


def loss_warnings(loss_type: str, normalisation: str, beta: float = 0.0) -> list[str]:
    """Sentences about where the objective of influence is not the loss that is trained on."""
    sentences = []
    wanted = NORMALISATION.get(loss_type, normalisation)
    if wanted != normalisation:
        sentences.append(
            f"influence is computed for another loss than the one trained on: "
            f"training.engine.grpo.loss_type {loss_type} goes with "
            f"influence.objective.normalisation={wanted}, not {normalisation}"
        )
    if beta > 0:
        sentences.append(
            f"training.engine.grpo.beta = {beta} adds a KL term to the loss that is trained on, "
            "and influence has none: prompts are ranked as if there were no KL term"
        )
    return sentences


def grpo_config(plan: StagePlan, work: Path, grpo: Mapping[str, Any]) -> GRPOConfig:
    """Our settings, then the user's `grpo` over them."""
    training, rollouts = plan.training, plan.rollouts
    check_grpo_settings(grpo)
    if plan.dynamic_sampling:
        check_dynamic(grpo)
    on_gpu = resolve_device(plan.model.device).type == "cuda"
    batch = training.prompts_per_step * training.responses
    settings: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": plan.horizon,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": batch,
        "num_generations": training.responses,
        "max_completion_length": training.max_new_tokens or rollouts.max_new_tokens,
        "temperature": training.temperature or rollouts.temperature,
        "top_p": rollouts.top_p,
        "top_k": rollouts.top_k,
        "beta": 0.0,
        "loss_type": "grpo",
        "seed": plan.seed,
        "shuffle_dataset": False,
        "ignore_data_skip": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "chat_template_kwargs": dict(plan.template_kwargs),
    }
    settings |= grpo
    settings |= _accumulation(settings, batch)
    try:
        return GRPOConfig(**settings)
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"TRL refuses the settings of training ({reason}); correct training.engine.grpo"
        ) from error


def _accumulation(settings: dict[str, Any], batch: int) -> dict[str, int]:
    """A smaller per-device batch means more accumulation: a step stays a step."""
    device_batch = settings["per_device_train_batch_size"]
    if not isinstance(device_batch, int) or device_batch < 1 or batch % device_batch:
        raise InputError(
            f"training.engine.grpo.per_device_train_batch_size = {device_batch!r} does not divide "
            f"a step of {batch} completions (prompts_per_step x responses); choose a divisor"
        )
    return {"gradient_accumulation_steps": batch // device_batch}
