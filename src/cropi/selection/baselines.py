"""Strategies that need no gradient: everything, a draw, or what the rewards alone say."""

from __future__ import annotations

import numpy as np

from cropi.errors import InputError
from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.strategy import Scoring, SelectionContext, require_shares, select_top

LOWEST_PASS_RATE, HIGHEST_PASS_RATE = 0.25, 0.75


@plugin("strategy", "full")
class Full:
    """The paper's full-data baseline: the whole pool, in its own order, whatever the ratio."""

    scoring: Scoring = "never"
    rollouts = False

    def select(self, context: SelectionContext) -> Selection:
        """Take every prompt."""
        return Selection(list(context.prompt_ids), np.ones(len(context.prompt_ids)))


@plugin("strategy", "dapo")
class Dapo(Full):
    """Dynamic sampling: the whole pool, but groups whose rewards are all equal are replaced.

    DAPO (arXiv 2503.14476, section 3.2) drops them after they were sampled, and samples further
    prompts until the step is full. What that costs counts. The loss stays the config's.
    """

    dynamic_sampling = True


@plugin("strategy", "random")
class Random:
    """The baseline that any method has to beat: a fresh uniform draw per stage.

    From the whole pool, uninformative prompts included.
    """

    scoring: Scoring = "never"
    rollouts = False

    def select(self, context: SelectionContext) -> Selection:
        """Draw without replacement."""
        count = len(context.prompt_ids)
        return select_top(context, np.zeros(count))


@plugin("strategy", "pass_rate")
class PassRate:
    """Difficulty filtering: a draw from prompts that are solved neither rarely nor nearly always.

    Uniform among informative prompts with a pass rate in [0.25, 0.75] under the start policy. If
    the band holds too few, those nearest to it follow.
    """

    scoring: Scoring = "never"

    def select(self, context: SelectionContext) -> Selection:
        """Score by closeness to the band; the draw breaks ties."""
        rates = context.statistics.pass_rates
        outside = np.maximum(LOWEST_PASS_RATE - rates, rates - HIGHEST_PASS_RATE).clip(min=0)
        return select_top(context, -outside, context.statistics.informative)


@plugin("strategy", "learnability")
class Learnability:
    """Highest reward variance under the start policy, p (1 - p) for rewards of 0 and 1.

    Ties are broken at random, drawn again in every stage.
    """

    scoring: Scoring = "never"

    def select(self, context: SelectionContext) -> Selection:
        """Score by variance."""
        statistics = context.statistics
        return select_top(context, statistics.variances, statistics.informative)


@plugin("strategy", "dare")
class Dare:
    """A draw by difficulty under the stage's own policy, estimated from stored rollouts.

    Pass rates p are those of the freshest rollouts of each prompt, training's own included,
    weighted to the current policy; prompts are drawn in proportion to (p (1 - p))^10, a symmetric
    Beta density. Both are DARE's (arXiv 2605.09188); its tiers of training are not part of this.
    """

    scoring: Scoring = "never"
    current = True
    SHARPNESS = 10.0

    def select(self, context: SelectionContext) -> Selection:
        """Draw without replacement. Raises InputError for rewards that are not shares of a pass."""
        rates_P = context.current
        assert rates_P is not None, "the strategy needs current pass rates and was given none"
        require_shares(rates_P, 1, "dare")
        weights_P = np.nan_to_num(rates_P * (1 - rates_P)).clip(min=0)
        noise_P = np.random.default_rng(context.seed).gumbel(size=len(weights_P))
        logs_P = self.SHARPNESS * np.log(np.maximum(weights_P, 1e-300))
        return select_top(context, logs_P + noise_P, weights_P > 0)


@plugin("strategy", "oracle")
class Oracle:
    """The upper bound for choosing by source: every prompt of the validation prompts' sources.

    It uses what no method is given: where the target's own prompts are. The ratio does not apply.
    """

    scoring: Scoring = "never"
    rollouts = False
    target_sources = True

    def select(self, context: SelectionContext) -> Selection:
        """Take the prompts of the target sources, in the pool's order.

        Raises InputError if the pool has none: there is no oracle for such a pool.
        """
        # Outside a run the sources are unknown, and nothing is chosen.
        pairs = zip(context.prompt_ids, context.sources, strict=False)
        chosen = [prompt_id for prompt_id, source in pairs if source in context.target_sources]
        if not chosen:
            raise InputError(
                f"strategy oracle: no pool prompt has a source of the validation sets "
                f"({', '.join(sorted(context.target_sources)) or 'none are known'}); leave it out, "
                "or give the sources the same names"
            )
        return Selection(chosen, np.ones(len(chosen)))
