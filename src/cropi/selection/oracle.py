"""The upper bound for choosing by source: every prompt of the sources that validation comes from.

It uses what no method is told, namely where the target's own prompts are.
"""

from __future__ import annotations

import numpy as np

from cropi.errors import InputError
from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext


@plugin("strategy", "oracle")
class Oracle:
    """All prompts of the target sources, in the pool's order; the ratio does not apply."""

    scoring: Scoring = "never"
    rollouts = False
    target_sources = True

    def select(self, context: SelectionContext) -> Selection:
        """Take the prompts of the target sources.

        Raises InputError if the pool has none: there is no oracle for such a pool.
        """
        pairs = zip(context.prompt_ids, context.sources, strict=False)  # outside runs: none known
        chosen = [prompt_id for prompt_id, source in pairs if source in context.target_sources]
        if not chosen:
            raise InputError(
                f"strategy oracle: no pool prompt has a source of the validation sets "
                f"({', '.join(sorted(context.target_sources)) or 'none is known'}); leave it out, "
                "or name the sources alike"
            )
        return Selection(chosen, np.ones(len(chosen)))
