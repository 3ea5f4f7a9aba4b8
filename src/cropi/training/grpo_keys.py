"""The keys of `training.engine.grpo`, checked by the source of TRL's GRPOConfig.

The source is parsed and not imported, because importing it loads torch: a config is checked in a
second. What only TRL itself can know, it says before anything is sampled (`trl_config`).
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.text import shown

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

ADAM_BETAS = {"adam_beta1": (0.0, 0.9999999), "adam_beta2": (0.0, 0.9999999)}
AT_LEAST_0 = ("beta", "epsilon", "epsilon_high", "delta", "weight_decay", "max_grad_norm",
              "adam_epsilon", "warmup_steps", "warmup_ratio", "entropy_coef")  # fmt: skip
RANGES: Mapping[str, tuple[float, float]] = ADAM_BETAS | dict.fromkeys(AT_LEAST_0, (0.0, math.inf))
"""Where numbers have to be that TRL and torch check late or not at all: a negative `beta` would
reward distance from the start policy."""

SOURCES = (
    ("trl", "trainer/grpo_config.py"),
    ("trl", "trainer/base_config.py"),
    ("transformers", "training_args.py"),
    ("transformers", "trainer_utils.py"),
)
"""Files, by package, that define GRPOConfig, what it inherits, and the names that it allows."""
CONFIGS = ("GRPOConfig", "_BaseConfig", "TrainingArguments")
SCALARS: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "str": str}

WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


@dataclass(frozen=True)
class GrpoKey:
    """A setting of GRPOConfig: the types in its annotation, the names it allows, and its help."""

    types: tuple[str, ...]
    names: tuple[str, ...] = ()
    help: str = ""


def check_grpo_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `grpo` key that GRPOConfig lacks or that is set elsewhere.

    Also for a value of another type than the key's. Without TRL nothing of that is known.
    """
    for key, value in settings.items():
        name = f"training.engine.grpo.{shown(key, 60)[1:-1]}"
        if key in RESERVED_KEYS:
            raise InputError(
                f"{name} = {shown(value)} is decided by {RESERVED_KEYS[key]}; set it there"
            )
        if key in FIXED_KEYS:
            raise InputError(
                f"{name} = {shown(value)} cannot be set ({FIXED_KEYS[key]}); leave it out"
            )
        if problem := _problem(key, value, grpo_keys()):
            raise InputError(f"{name} = {shown(value)}: {problem}")
    for key, package in PACKAGES.items():
        if settings.get(key) and find_spec(package) is None:
            raise InputError(
                f"training.engine.grpo.{key} = {settings[key]!r} needs the package {package}, "
                "which is not installed; install it, or leave the setting out"
            )


def _problem(key: str, value: Any, keys: Mapping[str, GrpoKey]) -> str:
    """What is wrong with a setting; empty if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "it is not a finite number; give one, or leave the setting out"
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if isinstance(value, int | float) and not low <= value <= high:
        return f"give a number of at least {low:g}" + (", below 1" if high < math.inf else "")
    if not keys:
        return ""
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see its documentation for the names"
        return f"this version of TRL's GRPOConfig has no such setting; {hint}"
    allowed = keys[key]
    if allowed.names and isinstance(value, str) and value not in allowed.names:
        close = difflib.get_close_matches(value, allowed.names, n=1)
        return f"give one of {', '.join(close or allowed.names)}"
    if value is None or not allowed.types or type(value) in _types(allowed):
        # TRL itself notices an unknown loss at the first step; its help names those it has.
        is_loss = key == "loss_type" and allowed.help and f"'{value}'" not in allowed.help
        return f"it is unknown to TRL; {allowed.help[:160]}" if is_loss else ""
    return f"give {' or '.join(WORDS[name] for name in allowed.types)}"


def _types(key: GrpoKey) -> tuple[type, ...]:
    """The types of a value: an integer is also a float, and true is not an integer."""
    kinds = {SCALARS[name] for name in key.types}
    return tuple(kinds | {int} if float in kinds else kinds)


@functools.cache
def grpo_keys() -> dict[str, GrpoKey]:
    """Every setting of GRPOConfig by name; empty where its source is not where it is expected."""
    classes = {node.name: node for node in _classes()}
    if CONFIGS[0] not in classes:
        return {}
    names = {name: _constants(node) for name, node in classes.items()}
    keys: dict[str, GrpoKey] = {}
    for config in (classes[name] for name in reversed(CONFIGS) if name in classes):
        for node in config.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                keys[node.target.id] = _key(node, names)
    return keys


def _classes() -> Iterator[ast.ClassDef]:
    for package, file in SOURCES:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path is not None and path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from (node for node in tree.body if isinstance(node, ast.ClassDef))


def _constants(node: ast.ClassDef) -> tuple[str, ...]:
    """The values of an enumeration of texts."""
    assigned = [each.value for each in node.body if isinstance(each, ast.Assign)]
    return tuple(str(v.value) for v in assigned if isinstance(v, ast.Constant))


def _key(node: ast.AnnAssign, names: Mapping[str, tuple[str, ...]]) -> GrpoKey:
    annotation = ast.unparse(node.annotation)
    parts = [part.strip() for part in annotation.removeprefix("Optional[").rstrip("]").split("|")]
    is_plain = all(part in SCALARS or part == "None" for part in parts)
    allowed = next((names[part] for part in parts if names.get(part)), ())
    types = tuple(part for part in parts if part in SCALARS) if is_plain else ()
    return GrpoKey(types, allowed, _help(node.value))


def _help(value: ast.expr | None) -> str:
    """The help in `field(..., metadata={"help": ...})`."""
    for each in value.keywords if isinstance(value, ast.Call) else []:
        if each.arg == "metadata":
            try:
                return str(ast.literal_eval(each.value).get("help", ""))
            except ValueError:
                return ""
    return ""
