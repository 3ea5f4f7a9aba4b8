"""The draw: what it believes, what it draws, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.rollouts.statistics import GROUP_SIZE, PassHistory, RolloutStatistics
from cropi.schema import SCORED, InfluenceEstimate
from cropi.selection import SelectionContext, find_strategy, select
from cropi.selection.draw import (
    LEAST_OF_RATIO,
    OFTEN_ENOUGH,
    OWN_SHARE,
    chance_of_a_gradient,
    normal_cdf,
    own_evidence,
)
from cropi.selection.settings import SelectionConfig, StrategyChoice

SKILLS, EACH, RESPONSES = 5, 80, 6
POOL_SIZE = SKILLS * EACH
SKILL_OF = np.arange(POOL_SIZE) % SKILLS


def world(seed: int = 0, helps: tuple[float, ...] = (0.1, 0, 0, 0, 0)) -> SelectionContext:
    """A pool of skills that features tell apart; influence with noise as large as the signal.

    Every third prompt has equal rewards, and no score.
    """
    draw = np.random.default_rng(seed)
    features = np.eye(SKILLS)[SKILL_OF] + draw.normal(0, 0.1, (POOL_SIZE, SKILLS))
    noise = draw.normal(0, 0.1, POOL_SIZE)
    informative = np.arange(POOL_SIZE) % 3 > 0
    cosines = {"v": np.array(helps)[SKILL_OF] + noise}
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
        hidden_states=np.stack([draw.normal(size=features.shape), features]) / math.sqrt(SKILLS),
        history=rounds(informative),
    )


def rounds(informative: np.ndarray, *trained: np.ndarray, rate: float = 0.5) -> PassHistory:
    """The start policy's rollouts, then rounds of training of 8 responses on some prompts."""
    start = np.where(informative, 0.5, 1.0) * RESPONSES
    counts = [np.full(POOL_SIZE, RESPONSES), *(8 * each for each in trained)]
    passes = [start, *(8 * rate * each for each in trained)]
    return PassHistory(np.array(passes, np.float64), np.array(counts, np.int64))


def drawn(context: SelectionContext) -> np.ndarray:
    """Places of the drawn prompts, in the pool's order."""
    return np.sort([int(i[1:]) for i in find_strategy("cropi").select(context).prompt_ids])


def share_of(skill: int, context: SelectionContext) -> float:
    return float((SKILL_OF[drawn(context)] == skill).mean())


@pytest.mark.parametrize("seed", range(3))
def test_what_alike_prompts_say_together_is_believed_where_single_ones_are_noise(seed: int) -> None:
    context = world(seed)
    top = np.argsort(-np.where(context.statistics.informative, context.estimate.mean["v"], -9))[:40]
    assert (SKILL_OF[top] == 0).mean() < share_of(0, context)
    assert share_of(0, context) > 0.8


@pytest.mark.parametrize("others", [0.0, 0.2, 0.5])
def test_stages_after_the_first_draw_a_share_from_all_prompts(others: float) -> None:
    strategy = find_strategy(StrategyChoice.model_validate({"name": "cropi", "others": others}))

    def share_elsewhere(stage: int) -> float:
        contexts = [replace(world(1), count=20, seed=seed, stage=stage) for seed in range(30)]
        places = [int(i[1:]) for each in contexts for i in strategy.select(each).prompt_ids]
        return float((SKILL_OF[places] != 0).mean())

    first = share_elsewhere(0)
    assert first < 0.1
    spread = 1 - 1 / SKILLS  # of what is drawn from all prompts
    assert share_elsewhere(1) == pytest.approx(first + others * (spread - first), abs=0.05)


def test_a_skill_that_is_learnt_leaves_its_place_to_others() -> None:
    """Its rewards differ over the last stage, but no longer at its end."""
    context = replace(world(1), stage=1)
    everywhere, of_skill = np.ones(POOL_SIZE, bool), SKILL_OF == 0
    stage = rounds(everywhere, of_skill)
    ended = rounds(everywhere, of_skill, rate=1.0)
    lagging, learnt = (
        replace(context, history=replace(stage, latest=each)) for each in (None, ended)
    )
    assert share_of(0, learnt) < 0.6 < 0.7 < share_of(0, lagging)


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


def test_noise_alone_takes_the_whole_pool_and_says_so() -> None:
    selection = find_strategy("cropi").select(world(4, helps=(0, 0, 0, 0, 0)))
    assert len(selection.prompt_ids) == POOL_SIZE
    assert len(selection.notes) == 1
    assert "cannot tell prompts apart" in selection.notes[0]


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 1.0])
def test_equal_cosines_take_the_whole_pool_and_say_so(cosine: float) -> None:
    context = of_cosines(np.full(POOL_SIZE, cosine))
    selection = find_strategy("cropi").select(context)
    assert len(selection.prompt_ids) == POOL_SIZE
    assert "cannot tell prompts apart" in selection.notes[0]


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-6])
def test_where_every_prompt_opposes_the_target_a_stage_is_still_drawn(spread: float) -> None:
    selection = find_strategy("cropi").select(of_cosines(-0.5 + spread * SKILL_OF))
    assert 1 <= len(selection.prompt_ids) < POOL_SIZE
    assert np.isfinite(selection.scores).all()


def of_cosines(cosines: np.ndarray) -> SelectionContext:
    """The world with these cosines [P]."""
    context = world()
    estimate = InfluenceEstimate.from_means(context.prompt_ids, {"v": cosines})
    return replace(context, estimate=estimate)


def test_a_set_that_tells_nothing_is_named_and_the_other_still_draws() -> None:
    context = world(1)
    noise = world(4, helps=(0, 0, 0, 0, 0)).estimate.mean["v"]
    both = InfluenceEstimate.from_means(context.prompt_ids, context.estimate.mean | {"w": noise})
    selection = find_strategy("cropi").select(replace(context, estimate=both))
    assert len(selection.prompt_ids) == context.count
    assert selection.notes == ["influence on w hardly tells prompts apart"]


@pytest.mark.parametrize(
    ("count", "visits", "size"), [(40, None, 40), (300, None, 300), (300, 60, 80), (40, 60, 40)]
)
def test_a_stage_has_what_is_expected_to_help_and_a_choice_for_no_stage_the_ratio(
    count: int, visits: int | None, size: int
) -> None:
    context = replace(world(1, helps=(0.3, 0, 0, 0, 0)), count=count, visits=visits)
    assert len(drawn(context)) == pytest.approx(size, rel=0.1)


def test_where_steps_would_repeat_prompts_more_of_those_that_help_are_drawn() -> None:
    context = world(1, helps=(0.3, 0, 0, 0, 0))
    assert len(drawn(replace(context, visits=OFTEN_ENOUGH * 55))) == 55
    many = replace(context, visits=4 * POOL_SIZE)
    assert len(drawn(many)) == pytest.approx(POOL_SIZE // SKILLS, rel=0.1)
    assert share_of(0, many) > 0.8


def test_a_stage_is_never_smaller_than_a_part_of_the_ratio() -> None:
    context = replace(world(1, helps=(0.3, 0, 0, 0, 0)), count=POOL_SIZE, visits=1)
    rare = SKILL_OF < 0
    rare[:20] = SKILL_OF[:20] == 0
    cosines = np.where(rare, 1.0, 0.0) + world(1, helps=(0, 0, 0, 0, 0)).estimate.mean["v"] * 0.01
    features = context.hidden_states + 3 * rare[:, None]
    estimate = InfluenceEstimate.from_means(context.prompt_ids, {"v": cosines.astype(np.float32)})
    chosen = drawn(replace(context, estimate=estimate, hidden_states=features))
    assert len(chosen) == LEAST_OF_RATIO * POOL_SIZE
    assert rare[chosen].sum() == rare.sum()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_what_training_has_made_all_right_or_all_wrong_is_drawn_less_and_so_is_what_is_alike(
    rate: float,
) -> None:
    """Training had every other prompt of skill 1, which the rest of it is judged by."""
    context = world(1)
    informative = np.ones(POOL_SIZE, bool)
    trained = ((np.arange(POOL_SIZE) % 2 == 0) & (SKILL_OF == 1)).astype(np.int64)
    before = chance_of_a_gradient(replace(context, history=rounds(informative)))
    after = chance_of_a_gradient(replace(context, history=rounds(informative, trained, rate=rate)))
    assert after[trained == 1].max() < 0.35 * before[trained == 1].min()
    alike = (SKILL_OF == 1) & (trained == 0)
    assert OWN_SHARE < after[alike].mean() < 0.6 * before[alike].mean()
    assert after[SKILL_OF != 1].mean() > 0.85 * before[SKILL_OF != 1].mean()


def test_training_that_changed_nothing_changes_no_chance() -> None:
    context = world(1)
    informative = np.ones(POOL_SIZE, bool)
    history = rounds(informative, np.ones(POOL_SIZE, np.int64))
    chances = chance_of_a_gradient(replace(context, history=history))
    assert chances == pytest.approx(1 - 2 * 0.5**GROUP_SIZE)


def test_a_mean_reward_between_0_and_1_is_no_gradient_where_all_are_equal() -> None:
    """As where each response has its reward for the format, and none is right."""
    context = world(1)
    rounds_RP = np.full((1, POOL_SIZE), RESPONSES)
    equal = SKILL_OF == 2
    history = PassHistory(0.1 * rounds_RP, rounds_RP, unequal=~equal[None])
    chances = chance_of_a_gradient(replace(context, history=history))
    assert chances[equal].max() < 0.4 < 0.6 < chances[~equal].min()
    assert chances[~equal].mean() == pytest.approx(1 - (5 / 6) ** GROUP_SIZE, abs=0.1)


def test_a_pool_without_any_response_has_every_chance() -> None:
    nothing = PassHistory(np.zeros((2, POOL_SIZE)), np.zeros((2, POOL_SIZE), np.int64))
    assert (chance_of_a_gradient(replace(world(1), history=nothing)) == 1).all()


def test_rewards_that_are_no_passes_are_no_reason_to_refuse() -> None:
    context = world(1)
    history = rounds(context.statistics.informative)
    signed = PassHistory(history.passes * 4 - 12, history.responses)
    chances = chance_of_a_gradient(replace(context, history=signed))
    assert ((chances > 0) & (chances <= 1)).all()
    assert len(drawn(replace(context, history=signed))) == context.count


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


def sampled(context: SelectionContext, part: np.ndarray) -> SelectionContext:
    """The same world, of which only a part was rolled out and scored."""
    statistics, scored = context.statistics, context.estimate
    estimate = replace(
        scored,
        status=[s if p else "no responses" for s, p in zip(scored.status, part, strict=True)],
    )
    counts = {"ok": np.where(part, RESPONSES, 0)}
    seen = replace(
        statistics,
        informative=statistics.informative & part,
        pass_rates=np.where(part, statistics.pass_rates, np.nan),
        statuses=counts,
    )
    history = PassHistory(context.history.passes * part, context.history.responses * part)
    return replace(context, estimate=estimate, statistics=seen, history=history)


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_speaks_for_prompts_that_were_never_rolled_out(seed: int) -> None:
    part = np.random.default_rng(100 + seed).random(POOL_SIZE) < 0.5
    context = sampled(world(seed, helps=(0.2, 0, 0, 0, 0)), part)
    chosen = drawn(context)
    assert share_of(0, context) > 0.8
    assert (~part[chosen]).sum() > 5


def test_a_sample_is_enough_where_predictions_spread_twice_their_error() -> None:
    strategy = find_strategy("cropi")
    part = np.arange(POOL_SIZE) < POOL_SIZE // 8
    assert strategy.enough(world(0, helps=(0.3, 0, 0, 0, 0)))
    assert not strategy.enough(sampled(world(0), part))
    assert not strategy.enough(world(0, helps=(0, 0, 0, 0, 0)))
    assert not strategy.enough(sampled(world(0), np.arange(POOL_SIZE) < 8))


def test_the_chance_of_prompts_that_were_never_sampled_is_that_of_alike_ones() -> None:
    """One skill is always solved, and so are its prompts without responses, it is expected."""
    context = world(0)
    solved = SKILL_OF == 1
    statistics = replace(context.statistics, informative=~solved)
    passes = np.where(solved, 1.0, 0.5) * RESPONSES
    history = PassHistory(passes[None], np.full((1, POOL_SIZE), RESPONSES))
    part = np.random.default_rng(1).random(POOL_SIZE) < 0.5
    seen = sampled(replace(context, statistics=statistics, history=history), part)
    chances = chance_of_a_gradient(seen)
    assert chances[~part & solved].mean() < 0.1 < 0.9 < chances[~part & ~solved].mean()


def test_equal_rewards_among_mixed_prompts_may_be_chance_and_among_solved_ones_are_the_rule() -> (
    None
):
    context = world(0)
    solved, unlucky = SKILL_OF == 1, np.arange(POOL_SIZE) % 10 == 0
    history = rounds(~(solved | unlucky))
    chances = chance_of_a_gradient(replace(context, history=history))
    assert chances[unlucky & ~solved].mean() > 5 * chances[solved].mean()


def test_strong_evidence_of_an_earlier_stage_is_not_lost_in_a_later_ones_noise() -> None:
    strong = world(0)
    noise = world(1, helps=(0, 0, 0, 0, 0))
    later = replace(strong, estimate=noise.estimate, earlier=[strong.estimate])
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


def test_too_few_scores_to_predict_from_take_the_whole_pool() -> None:
    context = world(1)
    few = InfluenceEstimate.from_means(
        context.prompt_ids[:9], {n: v[:9] for n, v in context.estimate.mean.items()}
    )
    selection = find_strategy("cropi").select(replace(context, estimate=few))
    assert selection.prompt_ids == context.prompt_ids
    assert selection.notes == [
        "influence cannot be predicted from 9 scores, so that the stage has the whole pool"
    ]


def test_without_features_it_says_what_is_missing() -> None:
    settings = SelectionConfig.model_validate({"strategy": "cropi"})
    with pytest.raises(InputError, match="needs the policy's hidden states at the prompts"):
        select(world().estimate, settings, rollouts=[])


def test_the_normal_distribution_by_known_values() -> None:
    values = normal_cdf(np.array([-np.inf, -1.959964, 0.0, 1.0, 40.0]))
    assert values == pytest.approx([0, 0.025, 0.5, 0.841345, 1], abs=1e-6)


def test_of_alike_prompts_those_whose_own_gradient_helps_come_first() -> None:
    context = world(1)
    evidence = own_evidence(context, "v")
    values = context.estimate.mean["v"]
    scored = context.statistics.informative
    assert (np.argsort(evidence[scored]) == np.argsort(values[scored])).all()
    assert evidence[~scored].tolist() == [0.5] * int((~scored).sum())
    chosen = drawn(context)
    helping = scored & (SKILL_OF == 0)
    taken = helping & np.isin(np.arange(POOL_SIZE), chosen)
    assert values[taken].mean() > values[helping].mean()
