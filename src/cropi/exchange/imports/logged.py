"""A response as a trainer wrote it down, before it is known which prompt of ours it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.prompts.chat_messages import written_chat
from cropi.prompts.formats import TEMPLATE_MARKS
from cropi.prompts.json_values import parsed_json
from cropi.prompts.row_columns import RowNotes, cell_of
from cropi.schema import MAX_REWARD, Message, RewardStatus
from cropi.text import shown

Row = Mapping[str, Any]
REWARD_WORDS: Mapping[str, Any] = {"true": 1.0, "false": 0.0, "": math.nan}
"""Words that tables write for a reward."""
Role = Literal["train", "eval"]
LARGEST_STEP = 2**63 - 1
"""The largest integer that a Parquet column can hold."""


@dataclass(slots=True)
class Tokens:
    """The tokens of a response, with whatever else a trainer logged about them.

    `prompt_ids` int32 [S] and `ids` int32 [T]; `logprobs` float32 [T] are the sampler's, in nats;
    `loss_mask` uint8 [T] is 0 at tokens that are not the policy's; `policy_versions` int32 [T].
    """

    prompt_ids: NDArray[np.int32]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None = None
    loss_mask: NDArray[np.uint8] | None = None
    policy_versions: NDArray[np.int32] | None = None


@dataclass(slots=True)
class LoggedResponse:
    """One response: what was asked, what came back, and what it was worth.

    `prompt` is text or a chat; `rendered` says that it is text that a chat template has made.
    `reward` is NaN unless `status` is "ok". `group` names the responses that were compared with
    each other, where the trainer says so; `record_id` names the response itself, where it may be
    logged twice. `whole_text` says whether `text` is all that the policy wrote: it is not where
    there are several turns, calls of tools, or thoughts that are logged apart. `about` are the
    row's other cells. `summary` marks a reward that a summary of responses repeats.
    """

    prompt: str | tuple[Message, ...]
    text: str
    reward: float
    status: RewardStatus = "ok"
    prompt_id: str = ""
    answer: str = ""
    source: str = ""
    group: str = ""
    record_id: str = ""
    step: int | None = None
    run: str = ""
    role: Role = "train"
    finish: Literal["", "stop", "length"] = ""
    rendered: bool = False
    whole_text: bool = True
    tokens: Tokens | None = None
    temperature: float | None = None
    summary: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class LogFile:
    """One file of a trainer's log, with the run, the step and the role that its path names.

    `rewards` are the columns whose sum is the reward, where the user names them; `tokens` says
    whether the tokens of responses that have a text are wanted too. `notes` collects what a reader
    should know. `row` is the last row that was asked about. A reader puts the columns whose sum it
    took for the reward, where there are several, into `summed`.
    """

    path: Path
    run: str
    step: int | None
    role: Role
    notes: RowNotes
    rewards: Sequence[str] = ()
    tokens: bool = True
    row: int = 0
    summed: tuple[str, ...] = ()

    def where(self, number: int) -> str:
        """What messages call a row, counted from 1."""
        self.row = number
        return f"{self.path} row {number}"

    def step_of(self, value: Any, where: str) -> int | None:
        """The step that a row says, or the file's; what is no whole number from 0 on is noted."""
        if value is None:
            return self.step
        try:
            whole = int(value)
        except (TypeError, ValueError, OverflowError):
            whole = -1
        broken = isinstance(value, bool) or (isinstance(value, float) and value != whole)
        if broken or not 0 <= whole <= LARGEST_STEP:
            self.notes.add("a step that is not a whole number from 0 on, not used", where)
            return self.step
        return whole

    def reward(self, row: Row, default: Any, where: str) -> float:
        """The reward of a row; NaN where it has none.

        Raises InputError if it is not a number, or if the user names columns that are not there.
        """
        if not self.rewards:
            return reward_number(default, where)
        row = {**row, **default} if isinstance(default, Mapping) else row
        return summed_reward([reward_number(value, where) for value in self.cells(row, where)])

    def cells(self, row: Row, where: str) -> list[Any]:
        """What a row has in the columns that the user names; None for an empty one.

        Raises InputError if a row has none of those that are empty.
        """
        values = [cell_of(row, name) for name in self.rewards]
        absent = [n for n, v in zip(self.rewards, values, strict=True) if v is None]
        if absent and not any(name.split(".")[0] in row for name in absent):
            raise missing_reward_error(absent, row, where)
        return values


def summed_reward(numbers: Sequence[float]) -> float:
    """The sum of a response's rewards without the missing ones, as in TRL; NaN if all are."""
    return math.nan if all(map(math.isnan, numbers)) else float(np.nansum(numbers))


def missing_reward_error(names: Sequence[str], row: Row, where: str) -> InputError:
    """The error for columns that the user names as the reward, and that a row lacks."""
    return InputError(
        f"{where} has no column {', '.join(names)} for the reward (it has "
        f"{shown(', '.join(cell_names(row)), 300)}); correct --reward"
    )


def cell_names(row: Row) -> list[str]:
    """The columns of a row, and `column.key` for those that hold values by name."""
    inner = {name: parsed_json(value) for name, value in row.items()}
    return [
        f"{name}.{key}" if key else str(name)
        for name, value in inner.items()
        for key in (value if isinstance(value, dict) and value else [""])
    ]


def reward_number(value: Any, where: str) -> float:
    """A reward as a number; NaN for none. Raises InputError for anything else.

    Tables write true and false as words, and some trainers a list of one number.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        (value,) = value
    if value is None:
        return math.nan
    if isinstance(value, Mapping) and value:
        raise InputError(
            f"{where} has several rewards by name ({shown(', '.join(map(str, value)), 200)}); pick "
            "one, or some for their sum, with --reward"
        )
    try:
        number = float(
            REWARD_WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        )
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if abs(number) > MAX_REWARD:
        raise InputError(
            f"{where} holds {shown(value, 60)} where a reward should be; give a number, or name "
            "the column (or key) of the reward with --reward"
        )
    return number


def reward_status(reward: float) -> RewardStatus:
    """A response without a reward was not judged."""
    return "error" if math.isnan(reward) else "ok"


def token_array(values: Any, where: str, name: str) -> NDArray[np.int32]:
    """Token ids as an array. Raises InputError for anything but whole numbers from 0 on."""
    try:
        ids = np.asarray(values, dtype=np.int64)
        wrong = ids.ndim != 1 or bool((ids < 0).any()) or bool((ids > 2**31 - 1).any())
    except (TypeError, ValueError, OverflowError):
        wrong = True
    if wrong:
        raise InputError(
            f"{where}: {name} holds {shown(values, 60)} where token ids should be; write a list of "
            "whole numbers"
        )
    return ids.astype(np.int32)


def aligned_floats(values: Any, length: int) -> NDArray[np.float32] | None:
    """Numbers beside the tokens of a response; None if there are none or not one for each."""
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == (length,) and not np.isnan(numbers).any() else None


def finish_reason_of(reason: Any) -> Literal["", "stop", "length"]:
    """How a response ended, in our words for those of any engine; empty if unknown."""
    if not isinstance(reason, str) or not reason:
        return ""
    cut = ("length", "truncated", "max_tokens", "max_output_tokens")
    return "length" if reason.lower() in cut else "stop"


def temperature_of(value: Any) -> float | None:
    """The temperature that a request names; None if it names none."""
    return float(value) if isinstance(value, int | float) else None


def is_rendered(prompt: Any) -> bool:
    """Whether a prompt is a text that a chat template has made."""
    return isinstance(prompt, str) and bool(TEMPLATE_MARKS.search(prompt))


def read_completion(completion: Any) -> tuple[str, bool]:
    """The text of a completion, and whether it is all that the policy wrote.

    It is not if there are several messages, tool calls or thoughts. Messages that are written as
    JSON are read as messages.
    """
    written = parsed_json(completion)
    if isinstance(written, list) and all(isinstance(m, Mapping) and "role" in m for m in written):
        completion = written
    if isinstance(completion, str):
        return completion, True
    if not isinstance(completion, list | tuple):
        return "" if completion is None else str(completion), True
    messages = [m for m in completion if isinstance(m, Mapping)]
    turns = [m for m in messages if m.get("role") in (None, "assistant")]
    whole = len(messages) == 1 and not has_more_than_content(messages[0])
    return plain_text(turns[-1].get("content")) if turns else "", whole


def has_more_than_content(message: Mapping[str, Any]) -> bool:
    """Whether the policy wrote more than the content of a message: tool calls or thoughts."""
    more = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
    return any(message.get(key) for key in more)


def plain_text(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, list | tuple):
        parts = [p.get("text") for p in content if isinstance(p, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def read_prompt(prompt: Any, where: str) -> str | tuple[Message, ...]:
    """A prompt as text or as a chat of plain messages, which may be written as JSON.

    Raises InputError for a chat that is written as Python shows it.
    """
    prompt = written_chat(prompt, where)
    if isinstance(prompt, list | tuple):
        return plain_messages(prompt)
    return "" if prompt is None else str(prompt)


def plain_messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    """The messages of a chat with texts alone."""
    messages = [m for m in messages if isinstance(m, Mapping)]
    return tuple(
        {"role": str(m.get("role", "user")), "content": plain_text(m.get("content"))}
        for m in messages
    )


def other_columns(row: Row, *columns: str) -> dict[str, Any]:
    """The cells of a row that are not in these columns."""
    return {key: value for key, value in row.items() if key not in columns}
