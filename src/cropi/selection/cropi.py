"""The method: prompts of highest influence under the current policy, fused over targets."""

from __future__ import annotations

from cropi.schema import Selection
from cropi.selection.base import Scoring, SelectionContext
from cropi.selection.fusion import fuse


class Cropi:
    """Influence under each stage's own policy (the paper's curriculum)."""

    scoring: Scoring = "stage"

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        assert context.scores is not None, "cropi asked for scores and got none"
        return fuse(context.scores, context.count, context.fusion_constant)
