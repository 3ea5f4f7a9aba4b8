"""verl's dumps: `trainer.rollout_data_dir` and `trainer.validation_data_dir`, `<step>.jsonl`.

Fields (verl 0.9.1): input, output, gts, score, step, and what the reward function returned beside
the score; `uid` in the V1 trainer. Both texts are decoded without special tokens, so that the
chat template's marks are gone: with `--prompts` the input is found again in a row of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cropi.exchange.imports.logged import LogFile, LoggedResponse, Row, other_columns, reward_status
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_files import NumberedRow

FORMAT_COLUMNS = ("input", "output", "gts", "score", "step", "uid", "request_id", "reward")


@plugin("rollout_format", "verl")
class VerlDump:
    """JSON lines of rollouts or validation that verl writes."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has the fields of such a dump."""
        return {"input", "output", "score"} <= row.keys() and bool({"gts", "step"} & row.keys())

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response for each rollout; of a rollout in several parts the last has the score."""
        rows = list(rows)
        last = {_rollout(row, number): number for number, row in rows}
        for number, row in rows:
            if last[_rollout(row, number)] != number:
                file.notes.add("an earlier part of a rollout, left out", file.where(number))
                continue
            yield _response(row, file, file.where(number))


def _parts(row: Row) -> list[str]:
    """The parts of a uid: sample, rollout, output."""
    return str(row.get("uid") or "").rsplit("_", 2)


def _rollout(row: Row, number: int) -> Any:
    parts = _parts(row)
    return tuple(parts[:2]) if len(parts) == 3 else number


def _response(row: Row, file: LogFile, where: str) -> LoggedResponse:
    reward = file.reward(row, row["score"], where)
    parts, answer = _parts(row), row.get("gts")
    return LoggedResponse(
        prompt=str(row["input"]),
        text=str(row["output"]),
        reward=reward,
        status=reward_status(reward),
        answer="" if answer is None else as_text(answer).strip(),
        group=parts[0] if len(parts) == 3 else "",
        step=file.step_of(row.get("step"), where),
        rendered=True,
        about=other_columns(row, *FORMAT_COLUMNS),
    )
