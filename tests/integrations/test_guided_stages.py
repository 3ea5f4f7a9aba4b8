"""What several processes measure of their shares is what one measures of all."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.estimation.noise import joined_estimates
from cropi.influence.setup import score
from cropi.policy.loading import load_model
from cropi.rollouts import rollout
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import InfluenceEstimate, Prompt, RolloutGroup
from cropi.training.process_group import ProcessGroup
from support.guided_training import data
from support.tiny_runs import untrained


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[RolloutGroup]:
    rows = data("pool", ["sort"], 16)
    prompts = [Prompt(f"p{n}", "5", "t", prompt=row["prompt"]) for n, row in enumerate(rows)]
    out = tmp_path_factory.mktemp("rollouts") / "pool.parquet"
    made = rollout(untrained(), prompts, out, RolloutsConfig(max_new_tokens=4), verifier="exact")
    for group in made[:-3]:  # some rewards that differ, and three prompts without a gradient
        for number, response in enumerate(group.responses):
            response.reward = float(number % 2)
    return made


def test_shares_of_a_pool_join_to_the_estimate_of_the_whole(groups: list[RolloutGroup]) -> None:
    model, targets = load_model(untrained()), {"t": groups[:6], "u": groups[4:9]}

    def of(pool: list[RolloutGroup]) -> InfluenceEstimate:
        return score(model, pool, targets).estimate

    whole = of(groups)
    parts = joined_estimates([of(groups[::2]), of(groups[1::2])], whole.prompt_ids)
    for each in fields(whole):
        assert_alike(getattr(parts, each.name), getattr(whole, each.name))


def test_an_error_of_a_users_function_keeps_its_cause() -> None:
    def work() -> None:
        raise InputError("it failed") from ZeroDivisionError("theirs")

    with pytest.raises(InputError, match="it failed") as caught:
        ProcessGroup().by_first(work)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def assert_alike(left: object, right: object) -> None:
    if isinstance(right, dict):
        assert isinstance(left, dict)
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert_alike(left[name], value)
    elif isinstance(right, np.ndarray):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    elif isinstance(right, list) and right and isinstance(right[0], np.ndarray):
        for a, b in zip(left, right, strict=True):  # type: ignore[call-overload]
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    else:
        assert left == right
