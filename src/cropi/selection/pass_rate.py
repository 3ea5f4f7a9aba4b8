"""Difficulty filtering: prompts the start policy solves neither rarely nor nearly always."""

from __future__ import annotations

import numpy as np

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, top_by_score

LOW, HIGH = 0.25, 0.75


@plugin("strategy", "pass_rate")
class PassRate:
    """A uniform draw among informative prompts with a pass rate in [0.25, 0.75].

    Where the band holds too few, those nearest to it follow.
    """

    scoring: Scoring = "never"

    def select(self, context: SelectionContext) -> Selection:
        """Score by closeness to the band; the draw breaks ties."""
        outside = np.maximum(LOW - context.pass_rate, context.pass_rate - HIGH).clip(min=0)
        return top_by_score(context, -outside, context.informative)
