"""Plans over a handful of pocket prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cropi.config import (
    ModelConfig,
    PromptSource,
    RolloutsConfig,
    TrainerChoice,
    TrainingConfig,
    VerifiersConfig,
)
from cropi.prompts import load_source
from cropi.schema import Prompt
from cropi.training import StagePlan
from cropi.verifiers import Judge

MakePlan = Callable[..., StagePlan]


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return load_source(PromptSource(pocket=["sort", "shift"], split="pool", size=4), 0)


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    with Judge(VerifiersConfig(default="exact")) as judge:
        yield judge


@pytest.fixture(scope="session")
def make_plan(prompts: list[Prompt]) -> MakePlan:
    """A plan of `steps` steps on two prompts each, taken from `prompts` in order.

    The learning rate is so low that the prompts stay half known: at 1e-3 a single step leaves no
    group with a gradient.
    """

    def make(
        start: str, steps: int, first_step: int = 0, horizon: int = 4, **grpo: Any
    ) -> StagePlan:
        return StagePlan(
            start=start,
            prompts=prompts[2 * first_step : 2 * (first_step + steps)],
            steps=steps,
            first_step=first_step,
            horizon=horizon,
            seed=7,
            model=ModelConfig(path="pocket", device="cpu"),
            training=TrainingConfig(
                prompts_per_step=2,
                responses=4,
                learning_rate=1e-5,
                engine=TrainerChoice.of(grpo={"lr_scheduler_type": "linear", **grpo}),
            ),
            rollouts=RolloutsConfig(max_new_tokens=8),
        )

    return make
