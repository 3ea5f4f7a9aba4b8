"""What is wrong with a config, in one sentence that names the key, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cropi.config.run_config import RunConfig
from cropi.plugins import Choice
from cropi.settings import Section, section_in
from cropi.text import printable, shortened, shown

RENAMED = {
    "method": "influence.sketch",
    "sparse_ratio": "influence.sketch.ratio",
    "projection": "influence.sketch.projection",
    "projection_dim": "influence.sketch.dim",
    "dim": "influence.sketch.dim",
    "fusion_constant": "selection.strategy.fusion_constant",
    "noise_floor": "selection.strategy.noise_floor",
    "memory": "selection.strategy.memory",
    "grpo": "training.engine.grpo",
    "stages": "curriculum.stages",
    "steps_per_stage": "curriculum.steps_per_stage",
    "max_steps": "curriculum.stages and curriculum.steps_per_stage",
    "num_train_epochs": "curriculum.stages and curriculum.steps_per_stage",
    "total_epochs": "curriculum.stages and curriculum.steps_per_stage",
    "total_training_steps": "curriculum.stages and curriculum.steps_per_stage",
    "refresh": "curriculum.refresh",
    "keep": "curriculum.keep_checkpoints",
    "save_total_limit": "curriculum.keep_checkpoints",
    "eval_steps": "evaluation.every",
    "test_freq": "evaluation.every",
    "model_name_or_path": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "model_path": "model.path",
    "attn_implementation": "model.attention",
    "torch_dtype": "model.dtype",
    "model_revision": "model.revision",
    "lora_r": "training.lora.r",
    "lora_rank": "training.lora.r",
    "rank": "training.lora.r",
    "lora_alpha": "training.lora.alpha",
    "lora_dropout": "training.lora.dropout",
    "lora_target_modules": "training.lora.target_modules",
    "lr": "training.learning_rate",
    "train_batch_size": "training.prompts_per_step",
    "per_device_train_batch_size": "training.engine.grpo.per_device_train_batch_size",
    "ppo_mini_batch_size": "training.prompts_per_step",
    "beta": "training.engine.grpo.beta",
    "kl_coef": "training.engine.grpo.beta",
    "loss_type": "training.engine.grpo.loss_type",
    "loss_agg_mode": "influence.objective.normalisation",
    "scale_rewards": "influence.objective.scale_by_std",
    "norm_adv_by_std_in_grpo": "influence.objective.scale_by_std",
    "importance_sampling_level": "influence.objective.ratio",
    "clip_ratio": "influence.objective.clip",
    "clip_range": "influence.objective.clip",
    "epsilon": "influence.objective.clip",
    "epsilon_high": "influence.objective.clip.high",
    "clip_ratio_high": "influence.objective.clip.high",
    "clip_ratio_low": "influence.objective.clip.low",
    "train_files": "prompts.pool",
    "val_files": "prompts.validation and prompts.test",
    "dataset_name": "prompts.pool (hub)",
    "max_prompt_length": "prompts.max_tokens",
    "reward_funcs": "verifiers.default",
    "custom_reward_function": "verifiers.default",
}
"""Names that other trainers, or this one before, use: what they are called here."""

RENAMED_IN_SECTION = {
    "batch_size": "engine.batch_size",
    **dict.fromkeys(
        ("generations", "num_generations", "n", "num_return_sequences", "samples", "rollout_n"),
        "responses",
    ),
    **dict.fromkeys(
        ("max_completion_length", "max_tokens", "max_response_length", "max_length"),
        "max_new_tokens",
    ),
}
"""The same, for keys that several sections have."""


def explain(error: ValidationError, origin: str, kind: type[Section] = RunConfig) -> str:
    """Sum up what pydantic reports, at most five problems, in one line."""
    problems = [line for e in error.errors()[:5] for line in _explain_one(e, kind)][:5]
    subject = f"config {origin}" if kind is RunConfig else origin
    return shortened(f"{subject}: " + "; ".join(problems))


def _explain_one(problem: Any, kind: type[Section], parents: tuple[str, ...] = ()) -> list[str]:
    """The sentences about one problem; `parents` lead to the section `kind` that it is in."""
    inner = tuple(str(p) for p in problem["loc"] if not str(p).startswith("function-"))
    location = (*parents, *inner)
    key = printable(shortened(".".join(location), 200)) or "config"
    if problem["type"] == "plugin_settings":
        nested = problem["ctx"]
        return [line for e in nested["errors"] for line in _of_plugin(e, nested, location)]
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(inner[:-1], kind)
        return [f"unknown key {key} (value {shown(problem['input'])}); {_hint(location, allowed)}"]
    if problem["type"] == "missing":
        return [f"{key} is missing; add it"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return [f"{key}: {message}" if location else message]
    return [f"{key} = {shown(problem['input'])}: {message[0].lower()}{message[1:]}"]


def _of_plugin(problem: Any, nested: Any, location: tuple[str, ...]) -> list[str]:
    """The sentences about a problem in the settings of a plug-in."""
    section, plugin = nested["section"], nested["plugin"]
    if problem["type"] != "extra_forbidden":
        return _explain_one(problem, section, location)
    key, allowed = problem["loc"][-1], sorted(section.model_fields)
    close = difflib.get_close_matches(str(key), allowed, n=1)
    settings = f"has {', '.join(allowed)}" if allowed else "has no settings"
    hint = f"; did you mean {close[0]!r}?" if close else ""
    path = printable(shortened(".".join((*location, str(key))), 200))
    return [f"unknown key {path} (value {shown(problem['input'])}); {plugin} {settings}{hint}"]


def _hint(location: tuple[str, ...], allowed: Sequence[str]) -> str:
    """What a key that does not exist may have been meant to be."""
    *section, leaf = location
    if (same := RENAMED_IN_SECTION.get(leaf)) and same.partition(".")[0] in allowed:
        return f"it is called {'.'.join((*section, same))} here"
    if leaf in RENAMED and RENAMED[leaf] != ".".join(location):
        return f"it is called {RENAMED[leaf]} here"
    close = difflib.get_close_matches(leaf, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"


def _keys_at(location: Sequence[str], kind: type[Section]) -> list[str]:
    """Return the keys allowed in the section at `location` below `kind`."""
    model: Any = kind
    for name in location:
        fields = getattr(model, "model_fields", {})
        if name in fields:
            model = section_in(fields[name].annotation)
            model = None if model and issubclass(model, Choice) else model
    return sorted(getattr(model, "model_fields", {}))
