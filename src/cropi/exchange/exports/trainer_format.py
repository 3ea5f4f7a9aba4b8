"""What a trainer reads: the interface that each file of this folder fills in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cropi.schema import Prompt
from cropi.verifiers.statement import gold_statement

Row = dict[str, Any]
REWARD_FILE = "rewards.py"


@dataclass(frozen=True)
class Place:
    """A prompt's row, from 0; its rank, from 1, and score, which those of a control lack."""

    index: int
    rank: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Start:
    """What the command that starts the training names.

    `folder` is the exported one, `model` the policy, `size` the number of selected prompts, `chat`
    whether they are messages.
    """

    folder: str
    model: str
    size: int
    chat: bool

    def path(self, name: str) -> str:
        """A file of the folder, quoted for a shell."""
        return shlex.quote(f"{self.folder}/{name}")

    @property
    def quoted_folder(self) -> str:
        """The folder itself, quoted for a shell."""
        return shlex.quote(self.folder)

    @property
    def policy(self) -> str:
        """The policy to train, quoted for a shell."""
        return shlex.quote(self.model)

    def batch(self, most: int) -> int:
        """Prompts of a batch: the largest power of two that the selection fills, up to `most`."""
        return int(min(most, 1 << (max(self.size, 1).bit_length() - 1)))


class TrainerFormat(Protocol):
    """One trainer's format.

    `read_in` names the release whose source or documentation was read. `chats` says whether it
    takes nothing but chats. `files` are further files of the folder by name, such as a reward file
    in the trainer's signature.
    """

    suffix: Literal[".parquet", ".jsonl"]
    read_in: str
    chats: bool
    files: Mapping[str, str]

    def row(self, prompt: Prompt, place: Place) -> Row:
        """A row as the trainer reads it, with every column that the prompt's own row had."""

    def command(self, start: Start) -> str:
        """The command that trains on the selection."""


def columns(prompt: Prompt, place: Place, /, **fields: Any) -> Row:
    """All columns of a prompt: those of its own row, ours, and the trainer's `fields`.

    A column of the row that has the name of another one is called `original_NAME`.
    """
    ours = {
        "prompt_id": prompt.prompt_id,
        "answer": prompt.answer,
        "source": prompt.source,
        **({"tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else {}),
        "cropi_rank": place.rank,
        "cropi_score": place.score,
        **fields,
    }
    others = {
        name if name not in ours or _holds(ours[name], value) else f"original_{name}": value
        for name, value in prompt.extra.items()
    }
    return {**others, **ours}


def _holds(field: Any, value: Any) -> bool:
    """Whether a field contains a value of the row."""
    if isinstance(field, dict) and isinstance(value, dict):
        return all(key in field and field[key] == each for key, each in value.items())
    return bool(field == value)


def final_answer_of(prompt: Prompt) -> str:
    """The answer as other graders compare it: the marked result of a worked solution."""
    return gold_statement(prompt.answer) or prompt.answer


def nested_object(prompt: Prompt, name: str) -> Row:
    """The object in a column of the prompt's own row; empty if there is none."""
    value = prompt.extra.get(name)
    return value if isinstance(value, dict) else {}


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as a chat: text is one user message."""
    if prompt.messages is None:
        return [{"role": "user", "content": prompt.prompt}]
    return [dict(message) for message in prompt.messages]


def text_or_messages(prompt: Prompt) -> str | list[dict[str, Any]]:
    """The prompt as it is: text, or messages."""
    return prompt.prompt if prompt.prompt is not None else as_messages(prompt)
