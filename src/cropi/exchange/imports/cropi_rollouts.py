"""Rollout files of cropi itself: token ids, log-probs and rewards, and no prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    Tokens,
    aligned_floats,
    finish_reason_of,
    reward_status,
    token_array,
)
from cropi.plugins import plugin
from cropi.prompts.row_files import NumberedRow


@plugin("rollout_format", "cropi")
class CropiRollouts:
    """What `cropi rollout` and runs write."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has the columns that every rollout file has."""
        return {"prompt_id", "prompt_ids", "response_ids", "logprobs", "reward"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per row."""
        for number, row in rows:
            where = file.where(number)
            judged = row.get("reward_status", "ok") == "ok"
            reward = file.reward(row, row["reward"] if judged else None, where)
            yield LoggedResponse(
                prompt="",
                text=str(row.get("text") or ""),
                reward=reward,
                status=reward_status(reward),
                prompt_id=str(row["prompt_id"]),
                step=file.step_of(row.get("policy_step"), where),
                finish=finish_reason_of(row.get("finish_reason")),
                tokens=_tokens(row, where),
                temperature=row.get("temperature"),
            )


def _tokens(row: Row, where: str) -> Tokens:
    ids = token_array(row["response_ids"], where, "response_ids")
    mask, versions = row.get("loss_mask"), row.get("policy_versions")
    return Tokens(
        token_array(row["prompt_ids"], where, "prompt_ids"),
        ids,
        aligned_floats(row["logprobs"], len(ids)),
        None if mask is None else np.asarray(mask, dtype=np.uint8),
        None if versions is None else np.asarray(versions, dtype=np.int32),
    )
