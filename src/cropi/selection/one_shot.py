"""The paper's one-shot baseline: influence under the first policy only, no curriculum."""

from __future__ import annotations

from cropi.schema import Selection
from cropi.selection.fusion import fuse
from cropi.selection.strategy import Scoring, SelectionContext


class OneShotInfluence:
    """The start policy's scores decide every stage, as published: none of our options."""

    scoring: Scoring = "once"

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        assert context.scores is not None, "influence asked for scores and got none"
        return fuse(context.scores, context.count, context.fusion_constant)
