"""A stage drawn from what influence is predicted to be, not the top of a noisy ranking.

A prompt's cosine from a handful of responses is mostly noise, so that the top of the ranking is
neither the most useful prompts nor different ones from stage to stage. Three steps mend that:

1. *Contrast*: what any training on the pool would bring is taken off (`beyond_the_pool`).
2. *Prediction*: a Bayesian ridge regression of the rest on the policy's hidden states at the
   prompts pools what alike prompts say, and says how sure it is. It needs no labels, and speaks
   for prompts without a gradient of their own. What the stages say is combined by precision: the
   first one's strong evidence is not halved by the noise of a later one.
3. *Draw*: with f_p and s_p the prediction and its error, and b the mean of the highest
   predictions, a set gives a prompt the weight

       P(f_p > b / 2) = Phi((f_p - b / 2) / s_p)

   and the stage is drawn without replacement in proportion to the sum of the sets' weights, each
   summing to one. Weights saturate: what surely helps is drawn alike, and every stage anew.

Where influence cannot tell prompts apart, all weights are about the same, and the draw is random.

Shape legend: P prompts of the pool, N scored ones, V validation sets, L layers, F features.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.estimation.evidence import beyond_the_pool
from cropi.estimation.ridge import Prediction, combined, fit_best
from cropi.plugins import plugin
from cropi.rollouts.statistics import RolloutStatistics
from cropi.schema import InfluenceEstimate, Selection
from cropi.selection.strategy import (
    POOL,
    Direction,
    Scoring,
    SelectionContext,
    shortfall,
    top_by_score,
)

Array = NDArray[np.float64]

BEST_SHARE = 0.25
"""Of the wanted number of prompts: those whose mean prediction is b."""
LEVEL = 0.5
"""Of b: above it a prompt is taken to help."""
LEAST_SCORED = 10
"""Scored prompts below which nothing can be predicted."""
TRAINED_GROUP = 8
"""Responses of a prompt in training, which have to differ in reward to teach anything."""


@plugin("strategy", "draw")
class Draw:
    """Influence beyond the pool's, predicted from the policy's hidden states, drawn every stage."""

    scoring: Scoring = "stage"
    direction: Direction = "contrast"
    features = True
    earlier = True

    def select(self, context: SelectionContext) -> Selection:
        """Draw in proportion to the weights. Raises InputError if too few prompts are scored."""
        predictions = predictions_of(context)
        weights_VP = [_shares(_weights(*each, context.count)) for each in predictions.values()]
        chance_P = chance_of_a_gradient(context.statistics)
        weights_P = np.mean(weights_VP, axis=0) * chance_P
        chosen = _drawn(weights_P, context.count, context.seed)
        chosen = chosen[top_by_score(weights_P[chosen], [context.prompt_ids[i] for i in chosen])]
        best_P = np.max([mean for mean, _ in predictions.values()], axis=0)
        blind = [n for n, (mean, error) in predictions.items() if mean.std() < error.mean()]
        notes = [f"influence on {name} hardly tells prompts apart" for name in blind]
        return Selection(
            prompt_ids=[context.prompt_ids[i] for i in chosen],
            scores=weights_P[chosen],
            negative=int((best_P[chosen] < 0).sum()),
            notes=[*shortfall(len(chosen), context.count, "prompts can be drawn"), *notes],
        )


def predictions_of(context: SelectionContext) -> dict[str, tuple[Array, Array]]:
    """For each validation set the influence [P] predicted for every prompt, and its error [P].

    What this stage's scores and those of earlier stages say is combined by precision. Raises
    InputError if fewer than LEAST_SCORED prompts are scored, or not with the pool too.
    """
    current = context.scored
    require_contrast(current)
    stages = [*(each.scored() for each in context.earlier), current]
    predictions = {}
    for name in targets_of(current):
        by_stage = [_predicted(context, each, name) for each in stages]
        predictions[name] = combined([each for each in by_stage if each is not None])
    return predictions


def targets_of(scored: InfluenceEstimate) -> list[str]:
    """The validation sets among the columns."""
    return [name for name in scored.mean if name != POOL]


def require_contrast(scored: InfluenceEstimate) -> None:
    """Raise InputError for scores that nothing can be predicted from."""
    if POOL not in scored.mean or not targets_of(scored):
        raise InputError(
            f"strategy draw compares with the pool's own direction, and the scores are of "
            f"{', '.join(scored.mean)}; score a sample of the pool as the target {POOL!r} beside "
            "the validation sets"
        )
    if len(scored.prompt_ids) < LEAST_SCORED:
        raise InputError(
            f"strategy draw: {len(scored.prompt_ids)} prompts are scored, and influence is "
            f"predicted from {LEAST_SCORED} or more; add prompts, sample more responses, or choose "
            "cropi"
        )


def _predicted(
    context: SelectionContext, scored: InfluenceEstimate, name: str
) -> Prediction | None:
    """What one stage's scores say of a validation set; None if they say nothing of it."""
    if not {name, POOL} <= scored.mean.keys() or len(scored.prompt_ids) < LEAST_SCORED:
        return None
    features_LPF = context.features
    assert features_LPF is not None, "the strategy needs features and was given none"
    row_of = {prompt_id: row for row, prompt_id in enumerate(scored.prompt_ids)}
    places_N = [place for place, i in enumerate(context.prompt_ids) if i in row_of]
    rows_N = [row_of[context.prompt_ids[place]] for place in places_N]
    values_N = beyond_the_pool(scored.mean[name][rows_N], scored.mean[POOL][rows_N])
    layer, ridge = fit_best([*features_LPF[:, places_N]], values_N - values_N.mean())
    return ridge.predict(features_LPF[layer])


def _weights(mean_P: Array, error_P: Array, count: int) -> Array:
    """P(f > b / 2) of every prompt; equal weights where nothing was learnt."""
    best = np.sort(mean_P)[::-1][: max(1, int(BEST_SHARE * count))].mean()
    scale_P = np.where(error_P > 0, error_P, math.inf)
    return normal_cdf((mean_P - LEVEL * best) / scale_P)


def _shares(weights_P: Array) -> Array:
    return np.asarray(weights_P / weights_P.sum())


def normal_cdf(values: Array) -> Array:
    """Phi, elementwise."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values.tolist()])


def chance_of_a_gradient(statistics: RolloutStatistics) -> Array:
    """How likely each prompt [P] has both better and worse responses in training.

    1 where its rewards differed. Where all n were equal, with Jeffreys' prior on the pass rate,

        1 - B(n + 1/2 + g, 1/2) / B(n + 1/2, 1/2),    g = TRAINED_GROUP:

    a third for six responses. Without a response it is the prior's.
    """
    counts, places = np.unique(statistics.statuses["ok"], return_inverse=True)
    unequal = [1 - math.exp(_log_beta(n + TRAINED_GROUP) - _log_beta(n)) for n in counts.tolist()]
    return np.where(statistics.informative, 1.0, np.array(unequal)[places])


def _log_beta(count: int) -> float:
    """log B(count + 1/2, 1/2)."""
    return math.lgamma(count + 0.5) + math.lgamma(0.5) - math.lgamma(count + 1)


def _drawn(weights_P: Array, count: int, seed: int) -> NDArray[np.int64]:
    """Places drawn without replacement in proportion to the weights, by Gumbel's trick."""
    noise_P = np.random.default_rng(seed).gumbel(size=len(weights_P))
    with np.errstate(divide="ignore"):
        keys_P = np.log(weights_P) + noise_P
    order = np.argsort(-keys_P, kind="stable")[:count]
    return np.asarray(order[np.isfinite(keys_P[order])])
