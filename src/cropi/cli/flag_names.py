"""Errors in the words of the command that was typed: flags instead of keys of a config.

The same functions serve `cropi run`, whose user writes a config, and the commands for single steps,
whose user writes flags and the bare settings of one section.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from cropi.evaluation.settings import EvaluationConfig
from cropi.influence.settings import InfluenceConfig
from cropi.rollouts.settings import RolloutsConfig
from cropi.selection.settings import SelectionConfig
from cropi.settings import Section
from cropi.training.settings import TrainingConfig
from cropi.verifiers.settings import VerifiersConfig

SECTIONS: Mapping[str, tuple[str, type[Section]]] = {
    "rollout": ("rollouts", RolloutsConfig),
    "features": ("influence", InfluenceConfig),
    "score": ("influence", InfluenceConfig),
    "select": ("selection", SelectionConfig),
    "train": ("training", TrainingConfig),
    "evaluate": ("evaluation", EvaluationConfig),
    "verify": ("verifiers", VerifiersConfig),
    "judge": ("verifiers", VerifiersConfig),
}
"""The section that the settings of each command for a step belong to."""
FLAGS = {
    "verifiers.default": "verifier",
    "verifiers.sources": "verifier",
    "model.path": "model",
    "model.dtype": "dtype",
    "model.device": "device",
    "rollouts.engine.batch_size": "batch_size",
    "rollouts.max_new_tokens": "max_new_tokens",
    "rollouts.temperature": "temperature",
    "curriculum.steps_per_stage": "steps",
}
"""Keys of other sections that are flags too."""
SOURCE_FLAGS = {"prompt": "prompt-column", "answer": "answer-column"} | {
    key: key.replace("_", "-") for key in ("answer_regex", "template", "system", "split", "limit")
}
"""Settings of a source of prompts, which messages show in backquotes, and their flags."""
_SOURCE_SETTING = re.compile(r"`([a-z_]+)(?:: ([^`]*))?`")
_KEY = re.compile(r"\b([a-z]+)((?:\.[a-z_]+)+)(?![\w/:])")


def in_flags(message: str, command: str, options: Collection[str]) -> str:
    """The message with the flags of a command that has these options (by parameter name)."""
    if command not in SECTIONS:
        return message
    if "answer_regex" in options:
        message = _SOURCE_SETTING.sub(_source_flag, message)
    name, section = SECTIONS[command]

    def replaced(match: re.Match[str]) -> str:
        key, inner = match[0], match[2][1:]
        if FLAGS.get(key) in options:
            return flag(FLAGS[key])
        if match[1] != name or inner.split(".")[0] not in section.model_fields:
            return key
        return flag(inner) if inner in options else inner

    return _KEY.sub(replaced, message)


def _source_flag(match: re.Match[str]) -> str:
    """A setting of a source of prompts as it is typed: `split: test` is --split test."""
    key, value = match[1], match[2]
    if key == "chat":
        return "--no-chat" if value == "false" else "--chat"
    if key not in SOURCE_FLAGS:
        return match[0]
    return f"--{SOURCE_FLAGS[key]}" + (f" {value}" if value else "")


def given_in_flags(message: str, options: Collection[str]) -> str:
    """The message about one section's settings, where `options` were given as flags."""
    named = re.sub(
        r"(^settings: |\(\d+\) )([a-z_]+)(?=[ :.])",
        lambda match: match[1] + (flag(match[2]) if match[2] in options else match[2]),
        message,
    )
    return re.sub("^settings: (?=--)", "", named)


def flag(option: str) -> str:
    """The flag of a parameter."""
    return f"--{option.replace('_', '-')}"
