"""Gradient alignment with on-policy rollouts, the costly relative of CROPI.

Before every stage pool and validation prompts are sampled anew from the current policy; a prompt's
score is the cosine of its policy gradient with the mean gradient of all validation prompts.
"""

from __future__ import annotations

import numpy as np

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Direction, Scoring, SelectionContext, shortfall


@plugin("strategy", "gradalign")
class GradAlign:
    """Highest cosine with the one mean validation gradient; ties by prompt id."""

    scoring: Scoring = "stage"
    direction: Direction = "mean"
    fresh = True

    def select(self, context: SelectionContext) -> Selection:
        """Rank by cosine."""
        assert context.scores is not None, "gradalign asked for scores and got none"
        cosine = np.mean([c.astype(np.float64) for c in context.scores.cosines.values()], axis=0)
        ids = np.array(context.scores.prompt_ids)
        chosen = np.lexsort((ids, -cosine))[: context.count]
        notes = shortfall(len(chosen), context.count, "prompts are informative")
        negative = int((cosine[chosen] < 0).sum())
        return Selection([str(i) for i in ids[chosen]], cosine[chosen], {}, negative, notes)
