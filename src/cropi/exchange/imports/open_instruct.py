"""open-instruct's `<run>_rollouts_<shard>.jsonl` of `--save_traces`: token ids, no text.

Fields (August 2026): step, sample_idx, prompt_idx, prompt_tokens, response_tokens, reward,
advantage, finish_reason, dataset, ground_truth, request_info, logprobs. The masks of tools' output
are not among them: a response that called a tool counts in rates, and its tokens are all masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    Tokens,
    aligned_floats,
    finish_reason_of,
    other_columns,
    reward_status,
    token_array,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_files import NumberedRow


@plugin("rollout_format", "open-instruct")
class OpenInstructTraces:
    """Rollout records of open-instruct's GRPO."""

    def recognises(self, row: Row) -> bool:
        """Whether a row is such a record."""
        return {"prompt_tokens", "response_tokens", "reward"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per line."""
        for number, row in rows:
            yield _response(row, file, file.where(number))


def _response(row: Row, file: LogFile, where: str) -> LoggedResponse:
    reward = file.reward(row, row["reward"], where)
    if called := _called_a_tool(row):
        file.notes.add("a tool call, whose output is not marked: without gradient", where)
    answer = _only(row.get("ground_truth"))
    return LoggedResponse(
        prompt="",
        text="",
        reward=reward,
        status=reward_status(reward),
        answer=as_text(answer).strip() if isinstance(answer, str) else "",
        source=str(_only(row.get("dataset")) or ""),
        group=str(row.get("prompt_idx", "")),
        step=file.step_of(row.get("step"), where),
        finish=finish_reason_of(row.get("finish_reason")),
        rendered=True,
        whole_text=not called,
        tokens=_tokens(row, called, where),
        about=other_columns(
            row, "step", "sample_idx", "prompt_idx", "prompt_tokens", "response_tokens"
        ),
    )


def _only(value: Any) -> Any:
    """The value in a list of one: a prompt may have several verifiers, each with its answer."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _tokens(row: Row, called: bool, where: str) -> Tokens:
    ids = token_array(row["response_tokens"], where, "response_tokens")
    prompt_ids = token_array(row["prompt_tokens"], where, "prompt_tokens")
    mask = np.zeros(len(ids), dtype=np.uint8) if called else None
    return Tokens(prompt_ids, ids, aligned_floats(row.get("logprobs"), len(ids)), mask)


def _called_a_tool(row: Row) -> bool:
    info = row.get("request_info")
    if not isinstance(info, Mapping):
        return False
    return bool(info.get("num_calls")) or bool(info.get("tool_calleds"))
