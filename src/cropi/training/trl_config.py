"""From the settings of a run to TRL's GRPOConfig, and where its loss differs from influence's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from cropi.errors import InputError
from cropi.policy.loading import resolve_device
from cropi.training.dynamic import check_dynamic
from cropi.training.grpo_keys import check_grpo_settings
from cropi.training.stage import StagePlan

NORMALISATION = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
"""The objective's normalisation (docs/method.md) that matches each loss of TRL."""


def grpo_config(
    plan: StagePlan, work: Path, grpo: Mapping[str, Any], processes: int = 1
) -> GRPOConfig:
    """Our settings, then the user's `grpo` over them.

    `processes` train together; this one need not be one of them, so that a launch can be checked.
    """
    training, rollouts = plan.training, plan.rollouts
    check_grpo_settings(grpo)
    if plan.dynamic_sampling:
        check_dynamic(grpo)
    on_gpu = resolve_device(plan.model.device).type == "cuda"
    batch = training.step_responses
    settings: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": plan.horizon,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": max(1, batch // processes),
        "num_generations": training.responses,
        "max_completion_length": plan.new_tokens,
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
    settings |= _accumulation(settings, batch, processes)
    try:
        config = GRPOConfig(**settings)
        _require_usable(config)
        return config
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"TRL refuses the settings of training ({reason}); correct training.engine.grpo"
        ) from error


def _require_usable(config: GRPOConfig) -> None:
    """Make what is made of settings when training begins: optimizer, schedule and reports.

    Raises what their libraries raise for numbers and names that they refuse, or do not have.
    """
    for callback in get_reporting_integration_callbacks(config.report_to):
        callback()
    if config.optim_target_modules is not None:
        return  # those are modules of the policy, which is not loaded yet
    model = torch.nn.Linear(1, 1)
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(config, model)
    get_scheduler(
        config.lr_scheduler_type,
        kind(model.parameters(), **arguments),
        config.get_warmup_steps(config.max_steps),
        config.max_steps,
        config.lr_scheduler_kwargs,
    )


def _accumulation(settings: dict[str, Any], batch: int, processes: int) -> dict[str, int]:
    """A smaller per-device batch means more accumulation: a step stays a step."""
    device_batch = settings["per_device_train_batch_size"]
    share = batch // processes
    if not isinstance(device_batch, int) or device_batch < 1 or share % device_batch:
        of_each = f", of which a process has {share}" if processes > 1 else ""
        raise InputError(
            f"training.engine.grpo.per_device_train_batch_size = {device_batch!r} does not divide "
            f"a step of {batch} completions (prompts_per_step x responses){of_each}; choose a "
            "divisor"
        )
    here = processes if int(os.environ.get("WORLD_SIZE", "1")) == processes else 1
    return {"gradient_accumulation_steps": batch // (device_batch * here)}
