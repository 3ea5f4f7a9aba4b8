"""The method: prompts of highest influence under the current policy, fused over targets."""

from __future__ import annotations

from cropi.schema import Selection
from cropi.selection.fusion import fuse
from cropi.selection.memory import remembered
from cropi.selection.strategy import Scoring, SelectionContext


class Cropi:
    """Influence under each stage's own policy (the paper's curriculum), with our options."""

    scoring: Scoring = "stage"

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        assert context.scores is not None, "cropi asked for scores and got none"
        scores = remembered(context.scores, context.earlier, context.memory)
        return fuse(scores, context.count, context.fusion_constant, context.noise_floor)
