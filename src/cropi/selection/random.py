"""The baseline that any method has to beat: a fresh uniform draw a stage."""

from __future__ import annotations

import numpy as np

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, top_by_score


@plugin("strategy", "random")
class Random:
    """Uniform over the whole pool, uninformative prompts included."""

    scoring: Scoring = "never"
    rollouts = False

    def select(self, context: SelectionContext) -> Selection:
        """Draw without replacement."""
        count = len(context.prompt_ids)
        return top_by_score(context, np.zeros(count), np.ones(count, dtype=bool))
