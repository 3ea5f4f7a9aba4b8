"""A stage drawn from what influence is predicted to be, not the top of a noisy ranking.

A prompt's cosine from a handful of responses is mostly noise, so that the top of the ranking is
neither the most useful prompts nor different ones from stage to stage. Four steps fix that:

1. *Whitening*: what many of the pool's gradients share is taken off (`influence/whitening.py`).
2. *Prediction*: a Bayesian ridge regression of the rest on the policy's hidden states at the
   prompts pools what alike prompts say, and says how sure it is. It needs no labels, and speaks
   for prompts without a gradient of their own. What several stages say is combined by precision:
   the first one's strong evidence is not halved by the noise of a later one.
3. *Size*: with f_p and s_p the prediction and its error, and b the mean of the highest
   predictions, a prompt helps a set with the chance

       P(f_p > b / 2) = Phi((f_p - b / 2) / s_p)

   and the stage has as many prompts as are expected to help: fewer than the ratio asks for where
   little does, and more where much does and the stage's steps would otherwise repeat prompts often.
4. *Draw*: without replacement, in proportion to a mixture of the sets' chances, each summing to
   one, times the chance that the prompt's next group has a gradient (`chance_of_a_gradient`).
   Chances saturate: what surely helps is drawn alike, in every stage again. After the first stage
   the mixture has a part (`others`) that is equal for all prompts and keeps untargeted skills. It
   grows in the draw as what helps is learnt, and has no gradient any more.

Where influence cannot tell prompts apart for any set, the stage has the whole pool.

What can be predicted need not be rolled out: a random part of the pool is, and doubled until the
predictions are sure (`Cropi.enough`). How many prompts that takes depends on the noise of their
influence, and not on the size of the pool.

Shape legend: P prompts of the pool, N scored ones, R rounds of sampling, L layers, F features.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cropi.estimation.ridge import Prediction, combined, fit_best
from cropi.influence.settings import Metric
from cropi.plugins import plugin
from cropi.rollouts.statistics import PassHistory
from cropi.schema import InfluenceEstimate, Selection
from cropi.selection.strategy import (
    Scoring,
    SelectionContext,
    shortfall,
    top_by_score,
)
from cropi.settings import Section
from cropi.text import plural

Array = NDArray[np.float64]

BEST_SHARE = 0.25
"""Of the wanted number of prompts: those whose mean prediction is b."""
LEVEL = 0.5
"""Of b: above it a prompt is taken to help."""
LEAST_SCORED = 10
"""Scored prompts below which nothing can be predicted."""
CERTAIN = 2.0
"""Predictions that spread so many times their error find nine tenths of what helps (chain)."""
LEAST_OF_RATIO = 0.2
"""Of what the ratio asks for: the least of a stage, as fewer prompts are overfitted."""
OFTEN_ENOUGH = 2
"""Visits of a prompt in a stage, beyond which other prompts that help are worth more."""
OWN_SHARE = 0.3
"""What a prompt's own last group says of its next one; the rest is what alike prompts say."""
LEAST_CHANCE = 0.02
"""That a prompt has a gradient, whatever alike ones say."""


class DrawSettings(Section):
    """When influence is measured, and of how many prompts."""

    sample: Annotated[int, Field(ge=0)] = Field(
        256,
        description="prompts, drawn at random, that are rolled out and scored first; doubled until "
        "influence can be predicted for the others; 0: the whole pool",
    )
    most: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most prompts that are rolled out and scored; default: the whole pool"
    )
    scoring: Literal["once", "stage"] = Field(
        "once", description="measure influence once, under the start policy, or before every stage"
    )
    others: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description="share of every stage but the first that is drawn from all prompts, whatever "
        "their influence, to keep untargeted skills; it grows as the prompts that help are learnt "
        "and fewer of their groups have a gradient",
    )

    @model_validator(mode="after")
    def _most_bounds_a_sample(self) -> DrawSettings:
        if self.most is not None and self.sample == 0:
            raise ValueError(
                f"most {self.most} has no effect with sample 0, which is the whole pool; set "
                f"sample={self.most}, or remove most"
            )
        return self


@plugin("strategy", "cropi", DrawSettings)
class Cropi:
    """Whitened influence, predicted from the policy's hidden states, drawn every stage."""

    metric: Metric = "whitened"
    hidden_states = True
    earlier = True
    history = True

    def __init__(self, settings: DrawSettings) -> None:
        self.scoring: Scoring = settings.scoring
        self.sample = settings.sample
        self.most = settings.most
        self.others = settings.others

    def enough(self, context: SelectionContext) -> bool:
        """Whether the predictions for every set spread CERTAIN times their error or more."""
        if len(context.scored.prompt_ids) < LEAST_SCORED:
            return False
        predictions = predictions_of(context).values()
        return all(mean_P.std() >= CERTAIN * error_P.mean() for mean_P, error_P in predictions)

    def select(self, context: SelectionContext) -> Selection:
        """Draw in proportion to the weights, or take the whole pool."""
        scored = len(context.scored.prompt_ids)
        if scored < LEAST_SCORED:
            return whole_pool(
                context, f"influence cannot be predicted from {plural(scored, 'score')}"
            )
        predictions = predictions_of(context)
        undecided = [name for name, each in predictions.items() if _tells_nothing(*each)]
        if len(undecided) == len(predictions):
            return whole_pool(context, "influence cannot tell prompts apart here")
        helps = {name: _helps(*each, context.count) for name, each in predictions.items()}
        drawn = [_shares(helps_P * own_evidence(context, n)) for n, helps_P in helps.items()]
        gradient_P = chance_of_a_gradient(context)
        others = self.others if context.stage > 0 else 0.0
        helpful_P = (1 - others) * np.mean(drawn, axis=0) * gradient_P
        weights_P = helpful_P + others / len(gradient_P) * gradient_P
        helpful = float(np.max([*helps.values()], axis=0).sum())
        count = stage_size(helpful * float(weights_P.sum() / helpful_P.sum()), context)
        chosen = _drawn(weights_P, count, context.seed)
        chosen = chosen[top_by_score(weights_P[chosen], [context.prompt_ids[i] for i in chosen])]
        best_P = np.max([mean for mean, _ in predictions.values()], axis=0)
        notes = [f"influence on {name} hardly tells prompts apart" for name in undecided]
        return Selection(
            prompt_ids=[context.prompt_ids[i] for i in chosen],
            scores=_shares(weights_P)[chosen],
            negative=int((best_P[chosen] < 0).sum()),
            notes=[*shortfall(len(chosen), count, "prompts can be drawn"), *notes],
        )


def whole_pool(context: SelectionContext, why: str) -> Selection:
    """Every prompt, since a share of them that is drawn at random trains worse than all."""
    count = len(context.prompt_ids)
    note = f"{why}, so that the stage has the whole pool"
    return Selection(prompt_ids=context.prompt_ids, scores=np.ones(count), notes=[note])


def predictions_of(context: SelectionContext) -> dict[str, tuple[Array, Array]]:
    """For each validation set the influence [P] predicted for every prompt, and its error [P].

    What this stage's scores and those of earlier stages say is combined by precision.
    """
    current = context.scored
    stages = [*(each.scored() for each in context.earlier), current]
    predictions = {}
    for name in current.mean:
        by_stage = [_predicted(context, each, name) for each in stages]
        predictions[name] = combined([each for each in by_stage if each is not None])
    return predictions


def _predicted(
    context: SelectionContext, scored: InfluenceEstimate, name: str
) -> Prediction | None:
    """What one stage's scores say of a validation set; None if they say nothing of it."""
    if name not in scored.mean or len(scored.prompt_ids) < LEAST_SCORED:
        return None
    row_of = {prompt_id: row for row, prompt_id in enumerate(scored.prompt_ids)}
    places_N = [place for place, i in enumerate(context.prompt_ids) if i in row_of]
    rows_N = [row_of[context.prompt_ids[place]] for place in places_N]
    values_N = scored.mean[name][rows_N].astype(np.float64)
    return _from_hidden_states(context, np.array(places_N), values_N - values_N.mean())


def _from_hidden_states(
    context: SelectionContext, places_N: NDArray[np.int64], values_N: Array
) -> Prediction:
    """What hidden states predict for the whole pool from the values at some places of it."""
    states_LPF = context.hidden_states
    assert states_LPF is not None, "the strategy needs hidden states and was given none"
    layer, ridge = fit_best([*states_LPF[:, places_N]], values_N)
    return ridge.predict(states_LPF[layer])


def stage_size(expected: float, context: SelectionContext) -> int:
    """How many prompts a stage has: so many as `expected`, within bounds.

    At least LEAST_OF_RATIO of what the ratio asks for. At most that number or, if that is more, so
    many that the stage's steps visit each OFTEN_ENOUGH. Where no stage of known length is chosen
    for, what the ratio asks for.
    """
    if context.visits is None:
        return context.count
    most = max(context.count, context.visits // OFTEN_ENOUGH)
    return round(min(max(expected, LEAST_OF_RATIO * context.count, 1), most))


def _tells_nothing(mean_P: Array, error_P: Array) -> bool:
    """Whether predictions are all the same, or differ by less than their error."""
    spread = mean_P.std()
    return bool(spread == 0 or spread < error_P.mean())


def _helps(mean_P: Array, error_P: Array, count: int) -> Array:
    """P(f > b / 2) of every prompt [P]; equal chances where nothing was learnt."""
    best = np.sort(mean_P)[::-1][: max(1, int(BEST_SHARE * count))].mean()
    scale_P = np.where(error_P > 0, error_P, math.inf)
    return normal_cdf((mean_P - LEVEL * best) / scale_P)


def _shares(weights_P: Array) -> Array:
    """The weights, summing to one; equal where all are 0, so that none is likelier than another."""
    total = float(weights_P.sum())
    return weights_P / total if total > 0 else np.full(len(weights_P), 1 / len(weights_P))


def normal_cdf(values: Array) -> Array:
    """Phi, elementwise."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values.tolist()])


def own_evidence(context: SelectionContext, name: str) -> Array:
    """Phi(U_p / sd U) of each prompt's own influence [P] on a set; 1/2 where it has none.

    Prompts that look alike may still pull apart, as where some verdicts are wrong; one's own
    measurement is too noisy to exclude it, and enough to prefer one to another.
    """
    scored = context.scored
    scale = max(float(scored.mean[name].std()), 1e-12)
    sizes = dict(zip(scored.prompt_ids, (scored.mean[name] / scale).tolist(), strict=True))
    return normal_cdf(np.array([sizes.get(i, 0.0) for i in context.prompt_ids]))


def chance_of_a_gradient(context: SelectionContext) -> Array:
    """How likely each prompt's [P] next group in training has better and worse responses.

    With a pass rate p, and g responses in a group, it is 1 - p^g - (1 - p)^g where the rewards
    differ. They are those of the last group in a round: a stage's mean lags behind what it teaches.
    A prompt's own last rate, of few responses, has the weight OWN_SHARE. The rest is predicted from
    hidden states: what alike prompts had under the start policy, and how that has changed in the
    prompts of the last round, towards no change for prompts unlike any of it.
    """
    rounds = context.history
    assert rounds is not None, "the strategy needs a history and was given none"
    start_P, *later = _chances(rounds.latest or rounds, context.group_size)
    alike_P = np.ones(len(start_P))
    if (~np.isnan(start_P)).any():
        mean = float(np.nanmean(start_P))
        alike_P = _bounded(mean + _like(context, start_P - mean))
    own_P = start_P
    for chances_P in later:
        own_P = np.where(np.isnan(chances_P), own_P, chances_P)
    if later and (~np.isnan(later[-1])).any():
        alike_P = _bounded(alike_P + _like(context, later[-1] - alike_P))
    both_P = OWN_SHARE * own_P + (1 - OWN_SHARE) * alike_P
    return np.where(np.isnan(own_P), alike_P, both_P)


def _chances(rounds: PassHistory, group_size: int) -> Array:
    """The chance [R, P] of unequal rewards that each round says; NaN where it has no response.

    Mean rewards beyond [0, 1] are shares of the range of all. Of n responses with unequal rewards
    at least one is better, and one worse: graded ones are taken to pass 1/n to 1 - 1/n of the time.
    """
    rates_RP = rounds.rates
    low, high = np.nanmin(rates_RP, initial=0.0), np.nanmax(rates_RP, initial=1.0)
    least_RP = 1 / np.maximum(rounds.responses, 2)
    shares_RP = np.clip((rates_RP - low) / (high - low), least_RP, 1 - least_RP)
    chances_RP = 1 - shares_RP**group_size - (1 - shares_RP) ** group_size
    return np.where(rounds.mixed | np.isnan(rates_RP), chances_RP, 0.0)


def _like(context: SelectionContext, values_P: Array) -> Array:
    """Values [P] predicted for every prompt from those that are not NaN; 0 for unlike prompts."""
    places_N = np.flatnonzero(~np.isnan(values_P))
    return _from_hidden_states(context, places_N, values_P[places_N]).mean_P


def _bounded(chances_P: Array) -> Array:
    return np.asarray(chances_P.clip(LEAST_CHANCE, 1.0))


def _drawn(weights_P: Array, count: int, seed: int) -> NDArray[np.int64]:
    """Places drawn without replacement in proportion to the weights, by Gumbel's trick."""
    noise_P = np.random.default_rng(seed).gumbel(size=len(weights_P))
    with np.errstate(divide="ignore"):
        keys_P = np.log(weights_P) + noise_P
    order = np.argsort(-keys_P, kind="stable")[:count]
    return np.asarray(order[np.isfinite(keys_P[order])])
