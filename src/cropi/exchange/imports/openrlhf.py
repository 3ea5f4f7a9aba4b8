"""OpenRLHF's JSON lines of its batch inference: `input`, `output`, `reward`.

OpenRLHF 0.9.6 has the command; 0.11 has dropped it, and writes no rollouts itself. The input is as
it was sent, with the chat template's marks where one was applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    is_rendered,
    other_columns,
    reward_status,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_files import NumberedRow

FORMAT_COLUMNS = ("input", "output", "reward", "label", "step")


@plugin("rollout_format", "openrlhf")
class OpenRlhfLines:
    """JSON lines with an input, an output and a reward."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has these fields, and not those of verl."""
        return {"input", "output", "reward"} <= row.keys() and "score" not in row

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per line."""
        for number, row in rows:
            where, answer = file.where(number), row.get("label")
            reward = file.reward(row, row.get("reward"), where)
            yield LoggedResponse(
                prompt=str(row["input"]),
                text=str(row["output"]),
                reward=reward,
                status=reward_status(reward),
                answer="" if answer is None else as_text(answer).strip(),
                step=file.step_of(row.get("step"), where),
                rendered=is_rendered(str(row["input"])),
                about=other_columns(row, *FORMAT_COLUMNS),
            )
