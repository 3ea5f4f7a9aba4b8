"""slime's dumps of `--save-debug-rollout-data`: `<rollout>.pt`, a dictionary of samples.

Fields of a sample (August 2026): group_index, index, prompt, tokens (of prompt and response),
response, response_length, label, reward (a number or several by name), loss_mask, weight_versions,
rollout_log_probs, status, metadata. The file is a pickle, which is read as plain data, without
running code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    Tokens,
    aligned_floats,
    finish_reason_of,
    read_prompt,
    reward_status,
    token_array,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_files import NumberedRow

FAILED = ("aborted", "failed", "pending")


@plugin("rollout_format", "slime")
class SlimeSamples:
    """Samples of slime's debug dumps."""

    def recognises(self, row: Row) -> bool:
        """Whether a row is such a sample."""
        return {"tokens", "response", "response_length", "reward"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per sample."""
        for number, row in rows:
            yield _response(row, file, file.where(number))


def _response(row: Row, file: LogFile, where: str) -> LoggedResponse:
    given = row["reward"]
    failed = row.get("status") in FAILED
    reward = file.reward(row, None if failed else given, where)
    mask, answer = row.get("loss_mask"), row.get("label")
    metadata = row.get("metadata")
    return LoggedResponse(
        prompt=read_prompt(row.get("prompt"), where),
        text=str(row["response"]),
        reward=reward,
        status=reward_status(reward),
        answer="" if answer is None else as_text(answer).strip(),
        group="" if row.get("group_index") is None else str(row["group_index"]),
        step=file.step,
        finish=finish_reason_of(row.get("status")),
        rendered=isinstance(row.get("prompt"), str),
        whole_text=mask is None or all(mask),
        tokens=_tokens(row, mask, where) if file.tokens else None,
        about=metadata if isinstance(metadata, dict) else {},
    )


def _tokens(row: Row, mask: Any, where: str) -> Tokens | None:
    ids = token_array(row["tokens"], where, "tokens")
    length = int(row["response_length"])
    if not 0 < length < len(ids):
        return None
    masked = np.asarray(mask, dtype=np.uint8) if mask is not None else None
    if masked is not None and masked.shape != (length,):
        return None
    logprobs = aligned_floats(row.get("rollout_log_probs"), length)
    return Tokens(
        ids[:-length],
        ids[-length:],
        logprobs,
        None if masked is None or masked.all() else masked,
        _versions(row.get("weight_versions"), length),
    )


def _versions(versions: Any, length: int) -> Any:
    """The version of each token, where all have the same."""
    texts = {str(version) for version in versions or []}
    if len(texts) != 1 or not (text := texts.pop()).isdecimal():
        return None
    return np.full(length, int(text), dtype=np.int32)
