"""TRL's tables of completions: `completions/completions_<step>.parquet` of `log_completions=True`.

Columns (TRL 1.16): step, prompt, completion, one column for each reward function, what reward
functions logged themselves, advantage. They hold text only, of the last generated batch. A table
that is written before the next batch is generated repeats rows of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

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
from cropi.prompts.row_files import NumberedRow

FORMAT_COLUMNS = ("step", "prompt", "completion", "advantage", "images", "image")
PROPORTIONAL = 1e-3
"""How far advantages may be from a multiple of the centred rewards, as a share of the largest."""


@plugin("rollout_format", "trl")
class TrlCompletions:
    """Tables of completions that TRL's trainers write."""

    def __init__(self) -> None:
        self._before: dict[str, list[Row]] = {}

    def recognises(self, row: Row) -> bool:
        """Whether a row has the columns of such a table."""
        return {"prompt", "completion", "advantage"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """The responses of one table that the table before it did not hold."""
        rows = list(rows)
        new = rows[self._repeated([row for _, row in rows], file) :]
        columns = list(file.rewards) or reward_columns([row for _, row in new])
        logged = [_response(row, columns, file, file.where(number)) for number, row in new]
        if not file.rewards:
            file.summed = tuple(columns) if len(columns) > 1 else ()
            _check_advantages(new, logged, columns, file)
        yield from logged

    def _repeated(self, rows: list[Row], file: LogFile) -> int:
        """How many of the first rows are the last of the table before."""
        before = self._before.get(file.run, [])
        content: list[Row] = [other_columns(row, "step") for row in rows]
        self._before[file.run] = content
        longest = min(len(before), len(content))
        repeated = (n for n in range(longest, 1, -1) if content[:n] == before[len(before) - n :])
        count = next(repeated, 0)
        for number in range(count):
            file.notes.add("logged again at a later step, counted once", file.where(number + 1))
        return count


def reward_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of numbers that reward functions give; by their names, where there are others."""
    names = [n for n in (rows[0] if rows else {}) if n not in FORMAT_COLUMNS]
    numeric = [n for n in names if all(_is_number(row.get(n)) for row in rows)]
    numeric = [n for n in numeric if any(row.get(n) is not None for row in rows)]
    named = [n for n in numeric if any(word in n.lower() for word in ("reward", "func"))]
    return named or numeric


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _response(row: Row, columns: Sequence[str], file: LogFile, where: str) -> LoggedResponse:
    values = [row.get(name) for name in columns]
    given = [float(v) for v in values if v is not None and not math.isnan(v)]
    default = sum(given) if given else None
    reward = file.reward(row, default, where)
    text, whole_text = read_completion(row["completion"])
    return LoggedResponse(
        prompt=read_prompt(row["prompt"], where),
        text=text,
        reward=reward,
        status=reward_status(reward),
        step=file.step_of(row.get("step"), where),
        whole_text=whole_text,
        about=other_columns(row, *FORMAT_COLUMNS, *columns),
    )


def _check_advantages(
    rows: Sequence[NumberedRow],
    logged: Sequence[LoggedResponse],
    columns: Sequence[str],
    file: LogFile,
) -> None:
    """Note groups whose logged advantages do not follow from the sum of the reward columns."""
    groups: dict[Any, list[int]] = {}
    for place, response in enumerate(logged):
        groups.setdefault(str(response.prompt), []).append(place)
    for places in groups.values():
        rewards = np.array([logged[place].reward for place in places])
        advantages = np.array([rows[place][1]["advantage"] or 0.0 for place in places], float)
        if not _follows(advantages, rewards):
            file.notes.add(
                f"the logged advantages do not follow from the sum of {', '.join(columns)}: there "
                "are weights, or another column is the reward; name it with --reward",
                file.where(rows[places[0]][0]),
            )


def _follows(advantages: Any, rewards: Any) -> bool:
    """Whether advantages are a multiple of rewards minus their mean."""
    centred = rewards - np.nanmean(rewards) if not np.isnan(rewards).all() else rewards * 0
    usable = ~np.isnan(centred) & ~np.isnan(advantages)
    centred, advantages = centred[usable], advantages[usable]
    size = float(np.abs(advantages).max(initial=0.0))
    energy = float(centred @ centred)
    scale = float(advantages @ centred) / energy if energy > 0 else 0.0
    return bool(np.abs(advantages - scale * centred).max(initial=0.0) <= PROPORTIONAL * (size or 1))
