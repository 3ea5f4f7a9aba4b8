"""Anchors: prompts from the rest of the pool, so that what is not targeted is not forgotten.

They come in as influence fades. While the targets have much to gain every visit goes to them; once
their best prompts align less than at the start, training on them alone mostly wears other skills.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cropi.schema import ScoreTable, Selection
from cropi.selection.base import SelectionContext
from cropi.selection.fusion import fuse


def faded(selection: Selection, context: SelectionContext) -> float:
    """How much less the selected prompts align than those of the first stage did, in [0, 1].

    1 - mean_s max_V U_t(s, V) / mean_s max_V U_0(s, V), each mean over its own stage's selection.
    """
    if not context.earlier or context.scores is None:
        return 0.0
    before = context.earlier[0]
    first = fuse(before, context.count, context.fusion_constant, context.noise_floor)
    start = _alignment(before, first)
    if start <= 0:
        return 0.0
    return float(np.clip(1 - _alignment(context.scores, selection) / start, 0, 1))


def _alignment(scores: ScoreTable, selection: Selection) -> float:
    """Mean over the selected prompts of their best cosine."""
    best = np.max([c.astype(np.float64) for c in scores.cosines.values()], axis=0)
    chosen = set(selection.prompt_ids)
    return float(best[[i in chosen for i in scores.prompt_ids]].mean())


def with_anchors(selection: Selection, context: SelectionContext, share: float) -> Selection:
    """Add prompts from the informative rest until they are `share` of the whole, in [0, 1).

    They are a fresh draw, stand last, and have a score of 0 and no rank. As visits go round all
    prompts, their share of the selection is their share of training.
    """
    chosen = set(selection.prompt_ids)
    pairs = zip(context.prompt_ids, context.informative, strict=True)
    rest = [name for name, informative in pairs if informative and name not in chosen]
    count = min(len(rest), round(len(chosen) * share / (1 - share)))
    if not count:
        return selection
    draw = np.random.default_rng(context.seed).permutation(len(rest))[:count]
    none = np.zeros(count, np.int32)
    return dataclasses.replace(
        selection,
        prompt_ids=[*selection.prompt_ids, *(rest[i] for i in draw)],
        scores=np.concatenate([selection.scores, np.zeros(count)]),
        ranks={name: np.concatenate([rank, none]) for name, rank in selection.ranks.items()},
        notes=[*selection.notes, f"{count} anchors from the rest of the informative pool"],
    )
