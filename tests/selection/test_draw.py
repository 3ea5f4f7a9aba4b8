"""The draw: what it believes, what it draws, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.estimation.evidence import beyond_the_pool
from cropi.rollouts.statistics import RolloutStatistics
from cropi.schema import SCORED, InfluenceEstimate
from cropi.selection import SelectionContext, find_strategy, select
from cropi.selection.draw import chance_of_a_gradient, normal_cdf
from cropi.selection.settings import SelectionConfig

SKILLS, EACH, RESPONSES = 5, 80, 6
POOL_SIZE = SKILLS * EACH
SKILL_OF = np.arange(POOL_SIZE) % SKILLS


def world(
    seed: int = 0, helps: tuple[float, ...] = (0.1, 0, 0, 0, 0), shared: float = 0.0
) -> SelectionContext:
    """A pool of skills that features tell apart; cosines with noise as large as the signal.

    `shared` is what all prompts have in common with the target and with the pool's direction, the
    more the higher the skill's number. Every third prompt has equal rewards, and no score.
    """
    draw = np.random.default_rng(seed)
    features = np.eye(SKILLS)[SKILL_OF] + draw.normal(0, 0.1, (POOL_SIZE, SKILLS))
    common = shared * (1 + SKILL_OF)
    noise = draw.normal(0, 0.1, (2, POOL_SIZE)) * np.array([[1.0], [0.2]])
    informative = np.arange(POOL_SIZE) % 3 > 0
    cosines = {"v": np.array(helps)[SKILL_OF] + common + noise[0], "pool": common + noise[1]}
    ids = [f"p{n:03d}" for n in range(POOL_SIZE)]
    estimate = InfluenceEstimate.from_means(ids, cosines)
    estimate.status = [SCORED if each else "rewards all equal" for each in informative]
    statistics = RolloutStatistics(
        prompt_ids=ids,
        pass_rates=np.where(informative, 0.5, 1.0),
        variances=np.where(informative, 0.25, 0.0),
        informative=informative,
        distinct=np.ones(POOL_SIZE, np.int64),
        tokens=np.ones(POOL_SIZE, np.int64),
        statuses={"ok": np.full(POOL_SIZE, RESPONSES)},
    )
    return SelectionContext(
        statistics=statistics,
        count=40,
        seed=seed,
        estimate=estimate,
        features=np.stack([draw.normal(size=features.shape), features]) / math.sqrt(SKILLS),
    )


def drawn(context: SelectionContext) -> np.ndarray:
    """Places of the drawn prompts, in the pool's order."""
    return np.sort([int(i[1:]) for i in find_strategy("draw").select(context).prompt_ids])


def share_of(skill: int, context: SelectionContext) -> float:
    return float((SKILL_OF[drawn(context)] == skill).mean())


@pytest.mark.parametrize("seed", range(3))
def test_what_alike_prompts_say_together_is_believed_where_single_ones_are_noise(seed: int) -> None:
    context = world(seed)
    top = np.argsort(-np.where(context.statistics.informative, context.estimate.mean["v"], -9))[:40]
    assert (SKILL_OF[top] == 0).mean() < share_of(0, context)
    assert share_of(0, context) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_what_all_prompts_share_is_no_help(seed: int) -> None:
    """By their plain cosines the last skills come first."""
    context = world(seed, helps=(0.1, 0, 0, 0, 0), shared=0.05)
    plain = [context.estimate.mean["v"][s == SKILL_OF].mean() for s in range(SKILLS)]
    assert np.argmax(plain) > 0
    assert share_of(0, context) > 0.6


def test_all_skills_that_help_are_drawn() -> None:
    context = world(1, helps=(0.12, 0.12, 0, 0, 0))
    assert share_of(0, context) + share_of(1, context) > 0.8
    assert min(share_of(0, context), share_of(1, context)) > 0.15


def test_every_validation_set_gets_its_part_of_the_draw() -> None:
    context = world(2)
    other = world(3, helps=(0, 0, 0, 0, 0.02)).estimate.mean["v"] * 0.1
    estimate = InfluenceEstimate.from_means(
        context.prompt_ids,
        context.estimate.mean | {"w": (0.02 * (SKILL_OF == 4) + other).astype(np.float32)},
    )
    context = replace(context, estimate=estimate)
    assert share_of(0, context) > 0.3
    assert share_of(4, context) > 0.3


def test_prompts_without_a_gradient_are_drawn_too_but_less_often() -> None:
    context = world(1)
    informative = context.statistics.informative[drawn(replace(context, count=60))]
    assert 0.6 < informative.mean() < 1.0


def test_noise_alone_draws_from_the_whole_pool_and_says_so() -> None:
    context = replace(world(4, helps=(0, 0, 0, 0, 0)), count=200)
    counts = np.bincount(SKILL_OF[drawn(context)], minlength=SKILLS)
    assert counts.min() > 20
    notes = find_strategy("draw").select(context).notes
    assert notes == ["influence on v hardly tells prompts apart"]


def test_each_seed_draws_anew_and_the_same_seed_the_same() -> None:
    context = world(1)
    first, second = drawn(context), drawn(replace(context, seed=9))
    assert first.tolist() == drawn(context).tolist()
    assert len(set(first) & set(second)) < 0.8 * len(first)


def test_the_order_of_scores_and_scores_of_scored_prompts_alone_change_nothing() -> None:
    context = world(1)
    scored = context.estimate.scored()
    order = np.random.default_rng(0).permutation(len(scored.prompt_ids))
    mixed = InfluenceEstimate.from_means(
        [scored.prompt_ids[i] for i in order], {n: v[order] for n, v in scored.mean.items()}
    )
    assert drawn(replace(context, estimate=mixed)).tolist() == drawn(context).tolist()


def test_prompts_without_any_response_can_be_drawn() -> None:
    context = world(1)
    statuses = {"ok": np.where(np.arange(POOL_SIZE) % 3 == 0, 0, RESPONSES)}
    statistics = replace(context.statistics, statuses=statuses)
    chosen = drawn(replace(context, statistics=statistics, count=60))
    assert (chosen % 3 == 0).any()


def test_strong_evidence_of_an_earlier_stage_is_not_lost_in_a_later_ones_noise() -> None:
    strong = world(0)
    noise = world(1, helps=(0, 0, 0, 0, 0))
    later = replace(strong, stage=1, estimate=noise.estimate, earlier=[strong.estimate])
    assert share_of(0, replace(later, earlier=[])) < 0.5
    assert share_of(0, later) > 0.8


def test_what_a_later_stage_learns_counts_too() -> None:
    weak = world(0, helps=(0.02, 0, 0, 0, 0))
    sure = world(1, helps=(0, 0, 0.2, 0, 0))
    assert share_of(2, replace(weak, estimate=sure.estimate, earlier=[weak.estimate])) > 0.8


def test_an_earlier_stage_without_the_set_or_with_few_scores_does_not_count() -> None:
    context = world(1)
    other = InfluenceEstimate.from_means(context.prompt_ids, {"w": context.estimate.mean["v"]})
    few = InfluenceEstimate.from_means(
        context.prompt_ids[:5], {n: v[:5] for n, v in world(3).estimate.mean.items()}
    )
    assert drawn(replace(context, earlier=[other, few])).tolist() == drawn(context).tolist()


def test_too_few_scores_are_refused() -> None:
    context = world(1)
    few = InfluenceEstimate.from_means(
        context.prompt_ids[:9], {n: v[:9] for n, v in context.estimate.mean.items()}
    )
    with pytest.raises(InputError, match="strategy draw: 9 prompts are scored"):
        drawn(replace(context, estimate=few))


@pytest.mark.parametrize("names", [["v"], ["pool"]])
def test_scores_without_the_pools_direction_or_without_a_target_are_refused(
    names: list[str],
) -> None:
    context = world(1)
    means = {name: context.estimate.mean[name] for name in names}
    part = InfluenceEstimate.from_means(context.prompt_ids, means)
    with pytest.raises(InputError, match="score a sample of the pool as the target 'pool'"):
        drawn(replace(context, estimate=part))


def test_without_features_it_says_what_is_missing() -> None:
    settings = SelectionConfig.model_validate({"strategy": "draw"})
    with pytest.raises(InputError, match="needs the policy's hidden states at the prompts"):
        select(world().estimate, settings, rollouts=[])


def test_the_part_that_the_pool_brings_is_taken_off() -> None:
    draw = np.random.default_rng(0)
    with_pool = draw.uniform(0.1, 0.5, 200)
    own = draw.normal(0, 0.1, 200)
    rest = beyond_the_pool(0.4 * with_pool + own - own.mean(), with_pool)
    assert rest == pytest.approx(own - own.mean(), abs=1e-9)
    opposed = np.full(5, -0.2)
    assert beyond_the_pool(opposed, with_pool[:5]).tolist() == opposed.tolist()
    assert beyond_the_pool(own[:5], np.zeros(5)).tolist() == own[:5].tolist()


def test_the_chance_of_a_gradient_is_that_of_jeffreys_prior() -> None:
    """Against draws of the pass rate from its posterior after n equal rewards."""
    counts = np.array([0, 2, 6, 16])
    statistics = replace(
        world().statistics,
        informative=np.array([False, False, False, False]),
        statuses={"ok": counts},
    )
    chances = chance_of_a_gradient(statistics)
    draw = np.random.default_rng(0)
    for count, chance in zip(counts, chances, strict=True):
        rate = draw.beta(count + 0.5, 0.5, 200_000)
        assert chance == pytest.approx(1 - (rate**8).mean(), abs=0.005)


def test_the_normal_distribution_by_known_values() -> None:
    values = normal_cdf(np.array([-np.inf, -1.959964, 0.0, 1.0, 40.0]))
    assert values == pytest.approx([0, 0.025, 0.5, 0.841345, 1], abs=1e-6)
