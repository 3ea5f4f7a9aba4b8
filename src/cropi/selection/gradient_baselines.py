"""Published relatives of CROPI that compare gradients in another way."""

from __future__ import annotations

import numpy as np

from cropi.errors import InputError
from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import (
    POOL_DIRECTION,
    Direction,
    Scoring,
    SelectionContext,
    shortfall,
    top_by_score,
)
from cropi.text import plural


@plugin("strategy", "gradalign")
class GradAlign:
    """Gradient alignment with on-policy rollouts: highest cosine with one validation gradient.

    Before every stage pool and validation prompts are sampled again from the current policy; a
    prompt's score is the cosine of its policy gradient with the mean gradient of all validation
    prompts. Ties are broken by prompt id.
    """

    scoring: Scoring = "stage"
    direction: Direction = "mean"
    fresh = True

    def select(self, context: SelectionContext) -> Selection:
        """Rank by cosine."""
        scored = context.scored
        cosine = np.mean([mean.astype(np.float64) for mean in scored.mean.values()], axis=0)
        chosen = top_by_score(cosine, scored.prompt_ids, context.count)
        notes = shortfall(len(chosen), context.count, "prompts are informative")
        negative = int((cosine[chosen] < 0).sum())
        ids = [scored.prompt_ids[index] for index in chosen]
        return Selection(ids, cosine[chosen], {}, negative, notes)


@plugin("strategy", "learnalign")
class LearnAlign:
    """Alignment within the pool: prompts that agree with many others, weighted by learnability.

    With unit gradients u, a prompt's mean cosine with the pool is u . mean(u), so that one
    direction, the pool's mean unit gradient, replaces all pairs. The score is that cosine times
    p (1 - p), once, from the start policy. No validation set is used.
    """

    scoring: Scoring = "once"
    direction: Direction = "pool"

    def select(self, context: SelectionContext) -> Selection:
        """Rank by alignment times learnability; ties are broken by prompt id.

        Prompts of which no response is usable have no pass rate, and are left out. Raises
        InputError for scores with another target than the pool.
        """
        scored, statistics = context.scored, context.statistics
        if list(scored.mean) != [POOL_DIRECTION]:
            raise InputError(
                "strategy learnalign compares with the pool's own direction, and the scores are of "
                f"{', '.join(scored.mean)}; score with the pool's rollouts as the only target, "
                f"named {POOL_DIRECTION}, and target=unit_mean"
            )
        cosine = scored.mean[POOL_DIRECTION]
        variance = dict(zip(statistics.prompt_ids, statistics.variances, strict=True))
        variance_N = np.array([variance[i] for i in scored.prompt_ids])
        score = cosine.astype(np.float64) * variance_N
        order = top_by_score(score, scored.prompt_ids)
        unjudged_N = np.isnan(variance_N)
        chosen = order[~unjudged_N[order]][: context.count]
        notes = shortfall(len(chosen), context.count, "prompts are informative")
        if count := int(unjudged_N.sum()):
            notes.append(
                f"{plural(count, 'prompt')} with a score, but without a usable response in the "
                "rollouts, left out; give the rollouts that were scored"
            )
        ids = [scored.prompt_ids[index] for index in chosen]
        return Selection(ids, score[chosen], notes=notes)
