"""Baselines that remember: what each ranks by, on histories made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.rollouts.statistics import PassHistory, RolloutStatistics
from cropi.schema import Selection
from cropi.selection import SelectionContext, find_strategy, needs_of, select
from cropi.selection.bandit import arm_values, nearest_means
from cropi.selection.history_baselines import Lze, beliefs, next_states
from cropi.selection.settings import SelectionConfig, StrategyChoice
from support.tiny_models import random_group

REMEMBERING = ("bandit", "dps", "information", "lze", "mopps")


def history(*rounds: list[tuple[float, int]]) -> PassHistory:
    """Rounds of (passes, responses), one for each prompt."""
    table = np.array(rounds, dtype=np.float64)
    return PassHistory(table[:, :, 0], table[:, :, 1].astype(np.int64))


def context(past: PassHistory, count: int, **settings: Any) -> SelectionContext:
    prompts = past.passes.shape[1]
    rate = np.full(prompts, 0.5)
    statistics = RolloutStatistics(
        [f"p{n}" for n in range(prompts)],
        rate,
        rate / 2,
        rate > 0,
        np.ones(prompts, np.int64),
        np.ones(prompts, np.int64),
        {"ok": np.full(prompts, 6)},
    )
    return SelectionContext(statistics, count, history=past, **settings)


def choose(name: str, past: PassHistory, count: int, **settings: Any) -> Selection:
    return find_strategy(name).select(context(past, count, **settings))


def test_a_belief_is_conjugate_and_forgets_only_when_a_prompt_is_sampled_again() -> None:
    alpha, beta = beliefs(history([(2, 6), (6, 6)], [(1, 4), (0, 0)]), decay=0.5)
    # First Beta(1.0 + 2, 1 + 4) = (3, 5); then half of it, half of the prior, and 1 of 4.
    assert alpha.tolist() == [0.5 * 3 + 0.5 + 1, 7]
    assert beta.tolist() == [0.5 * 5 + 0.5 + 3, 1]
    pooled = beliefs(history([(2, 6)], [(1, 4)]), decay=1.0)
    assert [float(x[0]) for x in pooled] == [4, 8]


def test_mopps_draws_again_for_each_seed_and_mostly_takes_half_solved_prompts() -> None:
    past = history([(0, 16)] * 10 + [(8, 16)] * 10 + [(16, 16)] * 10)
    draws = [choose("mopps", past, 5, seed=s).prompt_ids for s in range(40)]
    assert len({tuple(d) for d in draws}) == 40
    middle = {f"p{n}" for n in range(10, 20)}
    assert np.mean([i in middle for d in draws for i in d]) > 0.9


def test_information_prefers_little_evidence_and_a_middling_pass_rate() -> None:
    past = history([(4, 8), (40, 80), (1, 8), (8, 8)])
    assert choose("information", past, 4).prompt_ids == ["p0", "p2", "p3", "p1"]


def test_information_is_the_expected_drop_of_the_posteriors_variance() -> None:
    draws, n = np.random.default_rng(0), 8
    a, b = 3.0, 5.0
    passes = draws.binomial(n, draws.beta(a, b, 200_000))

    def variance(a: NDArray[np.float64] | float, b: NDArray[np.float64] | float) -> Any:
        return a * b / ((a + b) ** 2 * (a + b + 1))

    drop = variance(a, b) - variance(a + passes, b + n - passes).mean()
    (score,) = choose("information", history([(2, 6)]), 1).scores
    assert score == pytest.approx(drop, rel=0.01)


def test_dps_expects_a_prompt_to_stay_what_it_has_been() -> None:
    past = history(*[[(0, 8), (4, 8), (8, 8)]] * 4)
    chances = next_states(past, decay=1.0)
    assert chances.sum(1) == pytest.approx(1)
    assert chances.argmax(1).tolist() == [0, 1, 2]
    assert choose("dps", past, 1).prompt_ids == ["p1"]


def test_dps_by_hand_after_one_round() -> None:
    # Uniform before and partly solved then: the transition came from each state alike, so each
    # column has Dirichlet counts (1, 1 + 1/3, 1), and the next state is drawn from the middle one.
    chances = next_states(history([(1, 2)]), decay=1.0)
    assert chances[0].tolist() == pytest.approx([3 / 10, 4 / 10, 3 / 10])
    assert next_states(history([(0, 0)]), decay=0.7)[0].tolist() == pytest.approx([1 / 3] * 3)


def test_dps_is_less_sure_of_what_it_has_not_seen_for_a_while() -> None:
    seen, unseen = [(4, 8), (4, 8)], [(4, 8), (0, 0)]
    chances = next_states(history(seen, seen, unseen, unseen), decay=0.7)[:, 1]
    assert chances[0] > chances[1] > 1 / 3


def test_energy_by_hand() -> None:
    past = history([(0, 8), (6, 8), (8, 8), (0, 0)], [(4, 8), (4, 8), (8, 8), (0, 0)])
    # p0 = 0, p = 1/2, p' = 0: 1 * 1 * 1.3; p0 = 3/4: 1/4 * 1 * (1 + .3 * 1/2); solved; never seen
    assert Lze().energy(past).tolist() == pytest.approx([1.3, 0.25 * 1.15, 0, 0])
    chosen = choose("lze", past, 3)
    assert chosen.prompt_ids == ["p0", "p1"]
    assert chosen.notes == ["only 2 of the wanted 3 prompts qualify; all were taken"]


def test_an_arm_is_worth_the_running_mean_of_its_prompts_advantages() -> None:
    past = history([(4, 8), (0, 8), (0, 0)], [(8, 8), (0, 0), (0, 0)])
    values = arm_values(past, np.array([0, 1, 2]), learning_rate=0.25)
    # 2 sqrt(1/4) = 1, then a quarter of the way to 0; 0; unseen, so the mean of both
    assert values.tolist() == pytest.approx([0.75, 0, 0.375])


def test_the_bandit_draws_most_from_the_source_that_teaches_most() -> None:
    past = history([(4, 8)] * 50 + [(8, 8)] * 200)
    sources = ["half"] * 50 + ["solved"] * 200
    share = np.mean(
        [
            int(i[1:]) < 50
            for s in range(30)
            for i in choose("bandit", past, 10, seed=s, sources=sources).prompt_ids
        ]
    )
    # exp(1 / .2) to 1, whatever the sizes: nearly all, less what runs out
    assert share > 0.9


def test_the_bandit_over_one_source_says_what_to_do_and_does_it() -> None:
    past = history([(4, 8)] * 10 + [(8, 8)] * 10)
    with pytest.raises(InputError, match=r"has only 'same'; set strategy\.clusters"):
        choose("bandit", past, 4, sources=["same"] * 20)
    for unknown in ([], [""] * 20):
        with pytest.raises(InputError, match="in Python give sources"):
            choose("bandit", past, 4, sources=unknown)
    draws = np.random.default_rng(0)
    features = np.repeat(np.eye(2), 10, axis=0)[None] + draws.normal(0, 0.01, (1, 20, 2))
    strategy = find_strategy(StrategyChoice.of("bandit", clusters=2))
    assert needs_of(strategy).hidden_states
    assert not needs_of(find_strategy("bandit")).hidden_states
    chosen = [
        int(i[1:]) < 10
        for seed in range(20)
        for i in strategy.select(context(past, 4, hidden_states=features, seed=seed)).prompt_ids
    ]
    assert np.mean(chosen) > 0.9


def test_clusters_are_those_that_are_there() -> None:
    draws = np.random.default_rng(1)
    centres = draws.normal(0, 10, (5, 8))
    truth = draws.integers(0, 5, 300)
    clusters = nearest_means(centres[truth] + draws.normal(0, 0.1, (300, 8)), 5, seed=3)
    assert len({(int(t), int(f)) for t, f in zip(truth, clusters, strict=True)}) == 5
    assert len(np.unique(nearest_means(np.zeros((6, 2)), 3, seed=0))) == 1
    assert nearest_means(np.eye(3), 16, seed=0).tolist() != [0, 0, 0]


@pytest.mark.parametrize("name", REMEMBERING)
def test_rewards_that_are_no_shares_of_a_pass_are_refused(name: str) -> None:
    for passes in (-3.0, 9.0):
        with pytest.raises(InputError, match=f"strategy {name} reads rewards .*threshold"):
            choose(name, history([(passes, 6), (3, 6)]), 1, sources=["a", "b"])


@pytest.mark.parametrize("name", REMEMBERING)
def test_without_a_history_the_rollouts_are_the_first_round(name: str) -> None:
    draws = np.random.default_rng(0)
    rollouts = [random_group(draws, f"p{n}") for n in range(8)]
    settings = SelectionConfig(strategy=StrategyChoice.of(name), ratio=0.5)
    sources = {group.prompt_id: group.prompt_id[-1:] for group in rollouts}
    alone = select(None, settings, rollouts=rollouts, sources=sources)
    same = select(None, settings, rollouts=rollouts, sources=sources, history=[rollouts])
    assert alone.prompt_ids == same.prompt_ids
    assert alone.scores.tolist() == same.scores.tolist()
