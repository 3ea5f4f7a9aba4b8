"""The baseline of the paper's claim: train on everything."""

from __future__ import annotations

import numpy as np

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext


@plugin("strategy", "full")
class Full:
    """The whole pool, in its own order; the ratio does not apply."""

    scoring: Scoring = "never"
    rollouts = False

    def select(self, context: SelectionContext) -> Selection:
        """Take every prompt."""
        return Selection(list(context.prompt_ids), np.ones(len(context.prompt_ids)))
