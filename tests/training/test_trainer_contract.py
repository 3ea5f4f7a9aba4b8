"""What a run relies on in every trainer; the real one and the fake one of other tests keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cropi.policy.loading import load_policy
from cropi.policy.optimizer_state import second_moments
from cropi.schema import Prompt
from cropi.training import StageOutcome, StagePlan, find_trainer
from cropi.verifiers import Judge
from support.fakes import TRAINER

MakePlan = Callable[..., StagePlan]
STEPS, RESPONSES = 2, 4


@dataclass
class Stages:
    """Two stages of two steps, and the first of them again."""

    folders: list[Path]
    outcomes: list[StageOutcome]
    evaluated: list[int]
    progressed: list[tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module", params=["trl", TRAINER], ids=["trl", "fake"])
def stages(
    request: pytest.FixtureRequest,
    make_plan: MakePlan,
    judge: Judge,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stages:
    folder = tmp_path_factory.mktemp("stages")
    made = Stages([folder / name for name in ("first", "second", "again")], [], [], [])
    first = make_plan("pocket", STEPS)
    second = make_plan(str(made.folders[0]), STEPS, first_step=STEPS)
    plans = (first, replace(second, evaluate_every=3), first)
    for plan, out in zip(plans, made.folders, strict=True):
        out.mkdir()
        outcome = StageOutcome()
        returned = find_trainer(request.param).train(
            plan,
            judge,
            out,
            lambda policy, step: made.evaluated.append(step),
            lambda done, row: made.progressed.append((done, row)),
            outcome,
        )
        assert returned is outcome
        made.outcomes.append(outcome)
    return made


def test_a_stage_leaves_a_checkpoint_with_moments_for_every_weight(stages: Stages) -> None:
    for folder in stages.folders:
        policy = load_policy(folder)
        moments = second_moments(folder, policy.model)
        assert moments is not None
        assert (folder / "optimizer.pt").is_file()
        assert policy.tokenizer.eos_token_id == 1
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_a_stage_changes_the_weights_and_the_same_stage_leaves_the_same_bytes(
    stages: Stages,
) -> None:
    first, second, again = stages.folders
    assert {f.name for f in first.iterdir()} == {f.name for f in again.iterdir()}
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert replace(stages.outcomes[0], clock=[]) == replace(stages.outcomes[2], clock=[])


def test_a_later_stage_continues_optimizer_steps_and_schedule(stages: Stages) -> None:
    for folder, steps in zip(stages.folders, (2.0, 4.0, 2.0), strict=True):
        state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        assert {float(row["step"]) for row in state.values()} == {steps}
    rates = [row["learning_rate"] for outcome in stages.outcomes[:2] for row in outcome.log]
    assert rates == pytest.approx([1e-5, 7.5e-6, 5e-6, 2.5e-6])


def test_steps_are_counted_over_all_stages_in_log_clock_and_evaluations(stages: Stages) -> None:
    first, second, _ = stages.outcomes
    assert [row["step"] for row in [*first.log, *second.log]] == [1, 2, 3, 4]
    assert [step for step, _ in [*first.clock, *second.clock]] == [1, 2, 3, 4]
    assert sorted(seconds for _, seconds in first.clock) == [s for _, s in first.clock]
    # At each stage's last step, and at step 3 where the second evaluates every third.
    assert stages.evaluated == [2, 3, 4, 2]
    assert [done for done, _ in stages.progressed] == [1, 2] * 3
    assert all(row == {} or row in first.log for _, row in stages.progressed[:2])


def test_counts_are_those_of_what_was_sampled(stages: Stages, prompts: list[Prompt]) -> None:
    for outcome, chosen in zip(stages.outcomes[:2], (prompts[:4], prompts[4:8]), strict=True):
        prefill = sum(len(p.content) for p in chosen)  # a character per token
        assert outcome.prompts_sampled == len(chosen)
        assert outcome.prefill_tokens == prefill
        assert outcome.generated_tokens == sum(group.tokens for group in outcome.rollouts) > 0
        assert outcome.trained_tokens == outcome.generated_tokens + prefill * RESPONSES
        assert sum(outcome.statuses.values()) == len(chosen) * RESPONSES
        assert outcome.uninformative_trained == 0
        assert [group.prompt_id for group in outcome.rollouts] == [p.prompt_id for p in chosen]


def test_the_logged_reward_is_the_mean_of_what_was_sampled(stages: Stages) -> None:
    for outcome in stages.outcomes:
        means = [
            sum(float(r.reward) for g in groups for r in g.responses) / (2 * RESPONSES)
            for groups in (outcome.rollouts[:2], outcome.rollouts[2:])
        ]
        assert [row["reward"] for row in outcome.log] == pytest.approx(means)
