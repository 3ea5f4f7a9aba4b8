"""What is wrong with settings, in one sentence that names the key, the value and the fix.

Whether a file holds them, a command line or Python: pydantic's own words are of none of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cropi.text import printable, shortened, shown

RENAMED_KEYS = {
    "method": "influence.sketch",
    "sparse_ratio": "influence.sketch.ratio",
    "projection": "influence.sketch.projection",
    "projection_dim": "influence.sketch.dim",
    "dim": "influence.sketch.dim",
    "fusion_constant": "selection.strategy.fusion_constant of ranking",
    "noise_floor": "selection.strategy.noise_floor of ranking",
    "memory": "selection.strategy.memory of ranking",
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
    "train_files": "prompts.pool",
    "val_files": "prompts.validation and prompts.test",
    "dataset_name": "prompts.pool (hub)",
    "max_prompt_length": "prompts.max_tokens",
    "reward_funcs": "verifiers.default",
    "custom_reward_function": "verifiers.default",
}
"""Names that other trainers, or this one before, use: what they are called here."""

RENAMED_IN_OBJECTIVE = {
    "loss_agg_mode": ("loss_type", "normalisation"),
    "scale_rewards": ("scale_rewards", "scale_by_std"),
    "norm_adv_by_std_in_grpo": ("scale_rewards", "scale_by_std"),
    "importance_sampling_level": ("importance_sampling_level", "ratio"),
    "clip_ratio": ("epsilon", "clip"),
    "clip_range": ("epsilon", "clip"),
    "epsilon": ("epsilon", "clip"),
    "epsilon_high": ("epsilon_high", "clip.high"),
    "clip_ratio_high": ("epsilon_high", "clip.high"),
    "clip_ratio_low": ("epsilon", "clip.low"),
}
"""Names of a loss's options: TRL's under training.engine.grpo, ours under influence.objective."""

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


TEXT_OR_LIST = "text_or_list"
"""Our name for a value that is neither, where a setting takes both."""

KINDS = {
    "dict_type": "give a section of names and values, {name: value}",
    "list_type": "give a list, [...]",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "int_parsing": "give a whole number",
    "int_parsing_size": "give a whole number below 2^63",
    "int_from_float": "give a whole number",
    "int_type": "give a whole number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give text, in quotes if it looks like a number",
    "too_short": "give at least one",
    TEXT_OR_LIST: "give text, or a list, [...]",
}
"""What a value of the wrong kind should be, by pydantic's name of the problem."""

MOST_PROBLEMS = 20
"""Problems that one message lists."""


def explain(error: ValidationError, subject: str, kind: type[BaseModel]) -> str:
    """Sum up what pydantic reports of a section, every problem numbered where there are several."""
    problems = [line for e in _without_branches(error.errors()) for line in _explain_one(e, kind)]
    if len(problems) == 1:
        return shortened(f"{subject}: {problems[0]}")
    listed = " ".join(f"({n}) {line};" for n, line in enumerate(problems[:MOST_PROBLEMS], 1))
    more = len(problems) - MOST_PROBLEMS
    rest = f" and {more} more" if more > 0 else ""
    return shortened(f"{subject} has {len(problems)} problems: {listed.rstrip(';')}{rest}", 4_000)


def _without_branches(problems: Sequence[Any]) -> list[Any]:
    """The problems, those of a setting that takes text or something else once for each.

    Pydantic reports such a setting for text and for the other kind, with the kinds' names after
    the key. A value that is no text was meant as the other.
    """
    keys = [p["loc"][:-1] for p in problems if p["type"] == "string_type" and p["loc"][-1] == "str"]
    merged = []
    for problem in problems:
        place = problem["loc"]
        key = next((key for key in keys if place[: len(key)] == key), None)
        if key is None:
            merged.append(problem)
        elif place[len(key) :] != ("str",):
            inside = place[len(key) + 1 :]
            other = TEXT_OR_LIST if problem["type"] == "list_type" and not inside else None
            merged.append({**problem, "loc": (*key, *inside), "type": other or problem["type"]})
    return merged


def message_of(problem: Mapping[str, Any]) -> str:
    """What pydantic says of one wrong value, without its word for our own messages."""
    return str(problem["msg"]).removeprefix("Value error, ")


def section_in(annotation: Any) -> Any:
    """The class of settings in a field's annotation, such as `list[PromptSource] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (section := section_in(argument)) is not None:
            return section
    return None


def _explain_one(problem: Any, kind: type[BaseModel], parents: tuple[str, ...] = ()) -> list[str]:
    """The sentences about one problem; `parents` lead to the section `kind` that it is in."""
    inner = tuple(str(p) for p in problem["loc"] if not str(p).startswith("function-"))
    location = (*parents, *inner)
    key = printable(shortened(".".join(location), 200)) or "config"
    if problem["type"] == "plugin_settings":
        nested = problem["ctx"]
        return [line for e in nested["errors"] for line in _of_plugin(e, nested, location)]
    if inner[-1:] == ("[key]",):  # of a mapping
        key = ".".join(location[:-2])
        return [f"{key} has the key {shown(problem['input'])}: give text, in quotes"]
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        allowed = _keys_at(inner[:-1], kind)
        is_text = problem["type"] == "extra_forbidden"  # of any other key pydantic gives no value
        value = f" (value {shown(problem['input'])})" if is_text else ""
        return [f"unknown key {key}{value}; {_hint(location, allowed)}"]
    if problem["type"] == "missing":
        return [f"{key} is missing; add it"]
    message = message_of(problem)
    if problem["type"] in ("model_type", "model_attributes_type"):
        keys = ", ".join(_keys_at(inner, kind))
        return [f"{key} = {shown(problem['input'])}: give a section with its keys ({keys})"]
    if problem["type"] == "string_pattern_mismatch":
        described = str(_section_at(inner[:-1], kind).model_fields[inner[-1]].description)
        return [f"{key} = {shown(problem['input'])}: give {described.partition('; default')[0]}"]
    if fix := KINDS.get(problem["type"]):
        return [f"{key} = {shown(problem['input'])}: {fix}"]
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
    if leaf in RENAMED_KEYS and RENAMED_KEYS[leaf] != ".".join(location):
        return f"it is called {RENAMED_KEYS[leaf]} here"
    if leaf in RENAMED_IN_OBJECTIVE:
        trainer, ours = RENAMED_IN_OBJECTIVE[leaf]
        if section[:1] == ["influence"]:
            return f"it is called influence.objective.{ours} here"
        return (
            f"for training it is called training.engine.grpo.{trainer} here, "
            f"for influence influence.objective.{ours}"
        )
    close = difflib.get_close_matches(leaf, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"


def _keys_at(location: Sequence[str], kind: type[BaseModel]) -> list[str]:
    """Return the keys allowed in the section at `location` below `kind`."""
    return sorted(getattr(_section_at(location, kind), "model_fields", {}))


def _section_at(location: Sequence[str], kind: type[BaseModel]) -> Any:
    """Return the section at `location` below `kind`; None where a plug-in decides what it is."""
    model: Any = kind
    for name in location:
        fields = getattr(model, "model_fields", {})
        if name in fields:
            model = section_in(fields[name].annotation)
            model = None if hasattr(model, "kind") else model
    return model
