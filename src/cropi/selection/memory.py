"""Influence remembered: a running mean over stages, which noise of one stage moves less.

m_0 = U_0,    m_t = memory m_(t-1) + (1 - memory) U_t        per prompt and target
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cropi.schema import ScoreTable


def remembered(scores: ScoreTable, earlier: Sequence[ScoreTable], memory: float) -> ScoreTable:
    """`scores` with each cosine replaced by its running mean; oldest of `earlier` first.

    A prompt or target that a stage did not score has the mean of those stages that did.
    """
    if memory <= 0 or not earlier:
        return scores
    means: dict[str, np.ndarray] = {}
    for name, cosine in scores.cosines.items():
        mean = np.full(len(scores.prompt_ids), np.nan)
        for table in [*earlier, scores]:
            if name in table.cosines:
                own = cosine if table is scores else _looked_up(table, name, scores.prompt_ids)
                blend = memory * mean + (1 - memory) * own
                mean = np.where(np.isnan(mean), own, np.where(np.isnan(own), mean, blend))
        means[name] = mean.astype(np.float32)
    return dataclasses.replace(scores, cosines=means)


def _looked_up(table: ScoreTable, name: str, wanted: Sequence[str]) -> np.ndarray:
    known = dict(zip(table.prompt_ids, table.cosines[name].tolist(), strict=True))
    return np.array([known.get(prompt_id, np.nan) for prompt_id in wanted])
