"""Reciprocal-rank fusion of the validation sets' rankings (docs/method.md, the paper's c = 0).

Each set ranks all scored prompts by cosine and keeps its top n; a prompt's fused score is the
sum of 1 / (c + rank) over the sets in whose top n it is. Ties go by prompt id.
"""

from __future__ import annotations

import numpy as np

from cropi.schema import ScoreTable, Selection
from cropi.selection.noise import LEAST_SHARE, above_noise
from cropi.selection.strategy import shortfall


def fuse(
    scores: ScoreTable, count: int, constant: float = 0.0, noise_floor: float = 0.0
) -> Selection:
    """Return the `count` prompts of highest fused score, with each set's rank (0 = unlisted).

    With a `noise_floor`, prompts whose cosines are all within that many standard deviations of
    noise are left out, as long as a fifth of `count` remains.
    """
    ids = np.array(scores.prompt_ids)
    ranks = {name: _ranks(cosine, ids, count) for name, cosine in scores.cosines.items()}
    fused = _reciprocal_sum(np.stack(list(ranks.values())), constant)
    order = np.lexsort((ids, -fused))
    chosen = _worth_it(scores, order[fused[order] > 0][:count], count, noise_floor)
    dropped = min(count, int((fused > 0).sum())) - len(chosen)
    negative = negative_influence(scores, chosen)
    return Selection(
        prompt_ids=[str(i) for i in ids[chosen]],
        scores=fused[chosen],
        ranks={name: rank[chosen] for name, rank in ranks.items()},
        negative=negative,
        notes=_notes(len(chosen), dropped, negative, count),
    )


def _worth_it(scores: ScoreTable, chosen: np.ndarray, count: int, floor: float) -> np.ndarray:
    """The chosen prompts above noise, and of the others the best that make up the least share."""
    if floor <= 0:
        return chosen
    clear = above_noise(scores, floor)[chosen]
    missing = max(0, max(1, int(LEAST_SHARE * count)) - int(clear.sum()))
    clear[np.flatnonzero(~clear)[:missing]] = True
    return np.asarray(chosen[clear])


def _reciprocal_sum(ranks_VP: np.ndarray, constant: float) -> np.ndarray:
    """Sum of 1 / (constant + rank) over the sets that list a prompt.

    Summed in the order of size, not of the sets: ranks (1, 2, 3) and (3, 1, 2) must tie exactly.
    """
    terms_VP = np.divide(1.0, constant + ranks_VP, out=np.zeros(ranks_VP.shape), where=ranks_VP > 0)
    return np.asarray(np.sort(terms_VP, axis=0).sum(axis=0))


def _ranks(cosine: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Rank of each prompt in one set's top `count`, int32 from 1, 0 outside it."""
    order = np.lexsort((ids, -cosine.astype(np.float64)))[:count]
    ranks = np.zeros(len(ids), dtype=np.int32)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def negative_influence(scores: ScoreTable, chosen: np.ndarray) -> int:
    """How many of the chosen help no validation set: every cosine is below zero."""
    best = np.max([cosine[chosen] for cosine in scores.cosines.values()], axis=0)
    return int((best < 0).sum())


def _notes(chosen: int, dropped: int, negative: int, count: int) -> list[str]:
    notes = shortfall(chosen + dropped, count, "prompts are informative")
    if dropped:
        notes.append(f"{dropped} of {count} left out: their influence is within noise")
    if negative:
        notes.append(f"{negative} of the {chosen} selected have negative influence on every set")
    return notes
