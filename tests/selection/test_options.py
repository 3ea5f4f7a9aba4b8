"""Memory, which the paper's selection has not, and who does without."""

from __future__ import annotations

import numpy as np
import pytest

from cropi.schema import ScoreTable
from cropi.selection import SelectionContext, find_strategy
from cropi.selection.memory import remembered
from cropi.selection.settings import StrategyChoice


def scores(cosines: dict[str, float], name: str = "v") -> ScoreTable:
    values = np.array(list(cosines.values()), np.float32)
    return ScoreTable(list(cosines), {name: values}, np.ones(len(values), np.float32), 40)


def context(table: ScoreTable, **settings: object) -> SelectionContext:
    ids = [f"p{n:02d}" for n in range(40)]
    values = {
        "prompt_ids": ids,
        "pass_rate": np.full(40, 0.5),
        "variance": np.full(40, 0.25),
        "informative": np.arange(40) >= 4,
        "count": 8,
        "scores": table,
    }
    return SelectionContext(**{**values, **settings})


def test_memory_is_a_running_mean_from_the_first_stage_on() -> None:
    stages = [scores({"a": 0.8, "b": 0.0}), scores({"a": 0.0, "b": 0.4})]
    found = remembered(scores({"a": 0.4, "b": -0.4}), stages, 0.25)
    # a: .8 -> .25 x .8 + .75 x 0 = .2 -> .25 x .2 + .75 x .4;  b: 0 -> .3 -> .075 - .3
    assert found.cosines["v"].tolist() == pytest.approx([0.35, -0.225])


def test_a_prompt_that_a_stage_did_not_score_has_the_mean_of_the_others() -> None:
    found = remembered(scores({"a": 0.4, "new": 0.6}), [scores({"a": 0.2, "gone": 0.9})], 0.5)
    assert found.prompt_ids == ["a", "new"]
    assert found.cosines["v"].tolist() == pytest.approx([0.3, 0.6])


def test_without_memory_or_earlier_stages_scores_stay_as_they_are() -> None:
    table = scores({"a": 0.4})
    assert remembered(table, [], 0.5) is table
    assert remembered(table, [scores({"a": 0.1})], 0.0) is table


def test_the_strategy_ranks_by_what_it_remembers() -> None:
    ids = [f"p{n:02d}" for n in range(4, 40)]
    before = scores({i: float(n) / 40 for n, i in enumerate(ids)})
    now = scores({i: -float(n) / 400 for n, i in enumerate(ids)})
    find = find_strategy(StrategyChoice.of("cropi", noise_floor=0, memory=0.5))
    forgetful = find.select(context(now)).prompt_ids
    mindful = find.select(context(now, earlier=[before])).prompt_ids
    assert forgetful == ids[:8]
    assert mindful == ids[::-1][:8]


def test_the_one_shot_baseline_stays_as_published() -> None:
    table = scores({f"p{n:02d}": (0.5 if n < 8 else -0.01 * (n % 3) - 0.001) for n in range(4, 40)})
    given = context(table, earlier=[table])
    assert len(find_strategy("one_shot").select(given).prompt_ids) == 8
    assert len(find_strategy("cropi").select(given).prompt_ids) == 4
