"""`ranked.parquet`: every prompt of the pool, best first, its numbers and what became of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropi.exchange.ranking.prompt_history import PromptHistory
from cropi.exchange.ranking.ranking import CHOSEN, Ranking
from cropi.store.files import write_table
from cropi.store.tables import ERROR_SUFFIX

if TYPE_CHECKING:
    import pyarrow as pa


def write_ranked(path: Path, ranking: Ranking, about: dict[str, Any]) -> None:
    """Write the table atomically; `about` says what it was made from."""
    metadata = {"cropi.ranking": json.dumps(about), "cropi.notes": json.dumps(ranking.notes)}
    write_table(path, ranked_table(ranking), metadata)


def ranked_table(ranking: Ranking) -> pa.Table:
    """One row per prompt: those that could be taken in their order, then the others by id."""
    import pyarrow as pa

    logged = ranking.logged
    ids = [prompt.prompt_id for prompt in logged.prompts]
    columns: dict[str, Any] = {
        "prompt_id": pa.array(ids, pa.string()),
        "rank": _or_null(ranking.ranks.tolist(), pa.int32()),
        "selected": pa.array([reason == CHOSEN for reason in ranking.reasons], pa.bool_()),
        "control": pa.array([name in ranking.control for name in ids], pa.bool_()),
        "reason": pa.array(ranking.reasons, pa.string()),
        "source": pa.array([prompt.source for prompt in logged.prompts], pa.string()),
        **_rates(logged.history),
        **_influence(ranking, ids),
        **_suspected(ranking),
        "answer": pa.array([prompt.answer for prompt in logged.prompts], pa.string()),
        "prompt": pa.array([prompt.content for prompt in logged.prompts], pa.string()),
    }
    table = pa.table(columns)
    last = len(ids) + 1
    order = sorted(range(len(ids)), key=lambda i: (int(ranking.ranks[i]) or last, ids[i]))
    return table.take(pa.array(order, pa.int64()))


def _rates(history: Sequence[PromptHistory | None]) -> dict[str, pa.Array]:
    import pyarrow as pa

    nan = float("nan")
    return {
        "raw_pass_rate": _nullable([h.raw_pass_rate if h else nan for h in history]),
        "current_pass_rate": _nullable([h.current_pass_rate if h else nan for h in history]),
        "learnability": _nullable([h.learnability if h else nan for h in history]),
        "dead_groups": _nullable([h.uninformative_share if h else nan for h in history]),
        "responses": pa.array([len(h.members) if h else 0 for h in history], pa.int32()),
        "groups": pa.array([len(h.visits) if h else 0 for h in history], pa.int32()),
        "step": pa.array([h.newest.step if h else None for h in history], pa.int64()),
    }


def _influence(ranking: Ranking, ids: Sequence[str]) -> dict[str, pa.Array]:
    """Each target's cosine and its error; null where a prompt has none."""
    estimate = ranking.estimate
    if estimate is None:
        return {}
    row_of = {name: row for row, name in enumerate(estimate.prompt_ids)}
    rows = [row_of.get(name) for name in ids]
    columns = {}
    for name, mean in estimate.mean.items():
        error = estimate.standard_error[name]
        columns[name] = _nullable([math.nan if r is None else float(mean[r]) for r in rows])
        columns[name + ERROR_SUFFIX] = _nullable(
            [math.nan if r is None else float(error[r]) for r in rows]
        )
    return columns


def _suspected(ranking: Ranking) -> dict[str, pa.Array]:
    import pyarrow as pa

    suspicions = ranking.logged.suspicions
    return {
        "suspected": pa.array([each.kind if each else None for each in suspicions], pa.string()),
        "all_state": pa.array([each.stated if each else None for each in suspicions], pa.string()),
    }


def _nullable(values: Sequence[float]) -> pa.Array:
    import pyarrow as pa

    array = np.asarray(values, dtype=np.float64)
    return pa.array(array, pa.float64(), mask=np.isnan(array))


def _or_null(values: Sequence[int], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return pa.array([value or None for value in values], kind)
