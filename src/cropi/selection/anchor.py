"""Anchors: prompts from the rest of the pool, so that what is not targeted is not forgotten."""

from __future__ import annotations

import dataclasses

import numpy as np

from cropi.schema import Selection
from cropi.selection.base import SelectionContext


def with_anchors(selection: Selection, context: SelectionContext) -> Selection:
    """Make a share `context.anchor` of the selection a fresh draw from the informative rest.

    Anchors stand last, with a score of 0 and no rank. Their number counts beside the selected ones,
    whose visits they thin out by their share.
    """
    chosen = set(selection.prompt_ids)
    pairs = zip(context.prompt_ids, context.informative, strict=True)
    rest = [
        prompt_id for prompt_id, informative in pairs if informative and prompt_id not in chosen
    ]
    count = min(len(rest), round(len(chosen) * context.anchor / (1 - context.anchor)))
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
