"""Options of every command that reads prompts: which columns, what text around them, chat or not.

They are the settings of a source of prompts in a config, so that a step reads a file as a run does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cropi.cli.options import setting
from cropi.errors import InputError
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.text import shown

if TYPE_CHECKING:
    from cropi.policy.reference import PolicyRef
    from cropi.schema import Prompt

NAMES = {
    "prompt": "--prompt-column",
    "answer": "--answer-column",
    "answer_regex": "--answer-regex",
    "template": "--template",
    "system": "--system",
    "chat": "--chat/--no-chat",
    "source": "--source",
    "split": "--split",
    "limit": "--limit",
}
"""The option that stands for each setting of `PromptSource`."""
_TYPES = {"chat": bool, "limit": int}
_TEXTS = {
    "chat": "text questions become one user message, or stay text; default: messages if the model "
    "has a chat template",
    "split": "the split to take of a folder with several",
}
_KWARGS = "chat_template_kwargs"


@dataclass(frozen=True)
class PromptReading:
    """How files become prompts, as the options of one call say."""

    columns: dict[str, Any]
    template_kwargs: dict[str, Any]

    def prompts(self, path: Path, seed: int, policy: PolicyRef) -> list[Prompt]:
        """Read a file, folder or pattern for a policy: its chat template is used by default."""
        import cropi

        return cropi.load_prompts(path, seed, tokenizer=policy.tokenizer, **self.columns)

    def prompts_alone(self, path: Path, seed: int) -> list[Prompt]:
        """Read a file, folder or pattern without a policy: texts stay texts."""
        import cropi

        return cropi.load_prompts(path, seed, **self.columns)

    def prompts_sampled(self, path: Path, seed: int, ids: Iterable[str]) -> list[Prompt]:
        """Read a file without a policy, as the prompts with these ids were read.

        An id may be a hash of the content, which a chat template changes: where nothing says
        whether texts become messages, the ids do.
        """
        import cropi

        sampled = set(ids)
        prompts = cropi.load_prompts(path, seed, **self.columns)
        if "chat" in self.columns or any(p.prompt_id in sampled for p in prompts):
            return prompts
        as_chat = cropi.load_prompts(path, seed, **{**self.columns, "chat": True})
        return as_chat if any(p.prompt_id in sampled for p in as_chat) else prompts


def reads_prompts(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, which reach it together as its argument `reading`."""
    options = {key: _option(key) for key in NAMES}
    options[_KWARGS] = Annotated[
        str | None, _in_panel(setting(PromptsConfig, _KWARGS, "--chat-template-kwargs"))
    ]

    @functools.wraps(command)
    def with_reading(**given: Any) -> None:
        values = {key: given.pop(key) for key in options}
        kwargs = _mapping(values.pop(_KWARGS))
        columns = {key: value for key, value in values.items() if value is not None}
        command(**given, reading=PromptReading(columns, kwargs))

    signature = inspect.signature(command, eval_str=True)
    kinds = {p.name: p for p in signature.parameters.values() if p.name != "reading"}
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kinds.values()]
    parameters += [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for key, kind in options.items()
    ]
    vars(with_reading)["__signature__"] = signature.replace(parameters=parameters)
    with_reading.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_reading


def _option(key: str) -> Any:
    option = setting(PromptSource, key, NAMES[key], text=_TEXTS.get(key, ""))
    return Annotated[_TYPES.get(key, str) | None, _in_panel(option)]


def _in_panel(option: Any) -> Any:
    option.rich_help_panel = "Prompts"
    return option


def _mapping(text: str | None) -> dict[str, Any]:
    """The arguments of a chat template, written as YAML or JSON."""
    from cropi.config import yaml_text

    values = {} if text is None else yaml_text.parse(text, "--chat-template-kwargs")
    if not isinstance(values, dict):
        raise InputError(
            f"--chat-template-kwargs {shown(text, 80)} is not a mapping; give e.g. "
            "'{enable_thinking: false}'"
        )
    return values
