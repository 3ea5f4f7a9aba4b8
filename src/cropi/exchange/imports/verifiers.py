"""`results.jsonl` of verifiers before its version 0.4: one line per rollout.

Fields (verifiers 0.1 to 0.3): example_id, prompt, completion, answer, reward, task, info, and one
for each metric. Later versions write episodes, which the format prime-rl reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    other_columns,
    read_completion,
    read_prompt,
    reward_status,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_files import NumberedRow

FORMAT_COLUMNS = ("example_id", "prompt", "completion", "answer", "reward", "task", "is_truncated")
MEASURED = ("metrics", "timing", "token_usage", "error", "stop_condition", "is_completed")


@plugin("rollout_format", "verifiers")
class VerifiersResults:
    """Results of `vf-eval`, one line per rollout."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has the fields of such a result."""
        return {"example_id", "prompt", "completion", "reward"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per line."""
        for number, row in rows:
            where, failed = file.where(number), row.get("error") is not None
            reward = file.reward(row, None if failed else row["reward"], where)
            text, whole_text = read_completion(row["completion"])
            answer = row.get("answer")
            yield LoggedResponse(
                prompt=read_prompt(row["prompt"], where),
                text=text,
                reward=reward,
                status=reward_status(reward),
                answer="" if answer is None else as_text(answer).strip(),
                source=str(row.get("task") or ""),
                step=file.step,
                finish="length" if row.get("is_truncated") else "",
                whole_text=whole_text,
                about=other_columns(row, *FORMAT_COLUMNS, *MEASURED),
            )
