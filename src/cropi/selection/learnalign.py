"""Alignment within the pool: prompts that pull where many others pull, weighted by learnability.

With unit gradients u, a prompt's mean cosine with the pool is u . mean(u), so that one direction,
the pool's mean unit gradient, stands for all pairs. No validation set is used.
"""

from __future__ import annotations

import numpy as np

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Direction, Scoring, SelectionContext, shortfall


@plugin("strategy", "learnalign")
class LearnAlign:
    """Highest mean cosine with the pool times p (1 - p), chosen once from the start policy."""

    scoring: Scoring = "once"
    direction: Direction = "pool"

    def select(self, context: SelectionContext) -> Selection:
        """Rank by alignment times learnability; ties by prompt id."""
        assert context.scores is not None, "learnalign asked for scores and got none"
        (cosine,) = context.scores.cosines.values()
        variance = dict(zip(context.prompt_ids, context.variance, strict=True))
        ids = np.array(context.scores.prompt_ids)
        score = cosine.astype(np.float64) * np.array([variance[str(i)] for i in ids])
        chosen = np.lexsort((ids, -score))[: context.count]
        notes = shortfall(len(chosen), context.count, "prompts are informative")
        return Selection([str(i) for i in ids[chosen]], score[chosen], notes=notes)
