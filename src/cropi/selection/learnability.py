"""Learnability: prompts whose rewards vary most, p (1 - p) for rewards of 0 and 1."""

from __future__ import annotations

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, top_by_score


@plugin("strategy", "learnability")
class Learnability:
    """Highest reward variance under the start policy; equal ones in a fresh order a stage."""

    scoring: Scoring = "never"

    def select(self, context: SelectionContext) -> Selection:
        """Score by variance."""
        return top_by_score(context, context.variance, context.informative)
