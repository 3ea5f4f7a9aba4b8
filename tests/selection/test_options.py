"""Memory over stages, which is not in the paper, and the strategies that do not use it."""

from __future__ import annotations

import numpy as np
import pytest

from cropi.estimation.noise import running_mean
from cropi.rollouts.statistics import RolloutStatistics
from cropi.schema import InfluenceEstimate
from cropi.selection import SelectionContext, find_strategy
from cropi.selection.settings import StrategyChoice


def scores(cosines: dict[str, float]) -> InfluenceEstimate:
    return InfluenceEstimate.from_means(list(cosines), {"v": np.array([*cosines.values()])})


def context(estimate: InfluenceEstimate, **settings: object) -> SelectionContext:
    statistics = RolloutStatistics(
        prompt_ids=[f"p{n:02d}" for n in range(40)],
        pass_rates=np.full(40, 0.5),
        variances=np.full(40, 0.25),
        informative=np.arange(40) >= 4,
        distinct=np.ones(40, np.int64),
        tokens=np.ones(40, np.int64),
        statuses={},
    )
    return SelectionContext(statistics, 8, estimate=estimate, **settings)


def test_memory_is_a_running_mean_from_the_first_stage_on() -> None:
    stages = [scores({"a": 0.8, "b": 0.0}), scores({"a": 0.0, "b": 0.4})]
    combined = running_mean(scores({"a": 0.4, "b": -0.4}), stages, 0.25)
    # a: .8 -> .25 x .8 + .75 x 0 = .2 -> .25 x .2 + .75 x .4;  b: 0 -> .3 -> .075 - .3
    assert combined.mean["v"].tolist() == pytest.approx([0.35, -0.225])


def test_a_prompt_that_a_stage_did_not_score_has_the_mean_of_the_others() -> None:
    combined = running_mean(scores({"a": 0.4, "new": 0.6}), [scores({"a": 0.2, "gone": 0.9})], 0.5)
    assert combined.prompt_ids == ["a", "new"]
    assert combined.mean["v"].tolist() == pytest.approx([0.3, 0.6])


def test_without_memory_or_earlier_stages_scores_stay_as_they_are() -> None:
    table = scores({"a": 0.4})
    assert running_mean(table, [], 0.5) is table
    assert running_mean(table, [scores({"a": 0.1})], 0.0) is table


def test_the_strategy_ranks_by_the_running_mean() -> None:
    ids = [f"p{n:02d}" for n in range(4, 40)]
    before = scores({i: float(n) / 40 for n, i in enumerate(ids)})
    now = scores({i: -float(n) / 400 for n, i in enumerate(ids)})
    strategy = find_strategy(StrategyChoice.of("ranking", noise_floor=0, memory=0.5))
    forgetful = strategy.select(context(now)).prompt_ids
    mindful = strategy.select(context(now, earlier=[before])).prompt_ids
    assert forgetful == ids[:8]
    assert mindful == ids[::-1][:8]


def test_the_one_shot_baseline_stays_as_published() -> None:
    table = scores({f"p{n:02d}": (0.5 if n < 8 else -0.01 * (n % 3) - 0.001) for n in range(4, 40)})
    given = context(table, earlier=[table])
    assert len(find_strategy("one_shot").select(given).prompt_ids) == 8
    assert len(find_strategy("ranking").select(given).prompt_ids) == 4
