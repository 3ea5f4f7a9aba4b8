"""What stages record of their training: the next one goes on there, and all counts agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cropi.curriculum.loop import run
from cropi.rollouts import read_rollouts
from cropi.schema import derive_seed
from cropi.store.files import read_jsonl
from cropi.store.run_directory import Row, Stage
from cropi.store.tables import read_selection
from cropi.training import StageOutcome, StagePlan, stage_order
from cropi.training.stage import MAX_SAMPLING_ROUNDS
from cropi.training.trl_stage import TrlTrainer
from support.tiny_runs import tiny_config

ARMS = ("dapo", "full")
VISITS = 3 * 4  # steps and prompts per step of a tiny stage


@pytest.fixture(scope="module")
def plans() -> list[StagePlan]:
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, plans: list[StagePlan]) -> Path:
    """Two stages of dynamic sampling, then two of plain training, on the same prompts."""
    train = TrlTrainer.train

    def watch(trainer: TrlTrainer, plan: StagePlan, *rest: Any) -> StageOutcome:
        plans.append(plan)
        return train(trainer, plan, *rest)

    config = tiny_config(
        tmp_path_factory.mktemp("run"), "selection.strategy=dapo", "baselines=[full]"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrlTrainer, "train", watch)
        return run(config)


def stage(root: Path, arm: str, index: int) -> Stage:
    return Stage(arm, index, root / "arms" / arm / "stages" / str(index))


def rows(root: Path, kind: str, arm: str) -> list[Row]:
    every_row = read_jsonl(root / "metrics.jsonl")
    return [row for row in every_row if (row["kind"], row["arm"]) == (kind, arm)]


def test_a_stage_goes_on_after_the_last_candidate_of_the_one_before(
    finished: Path, plans: list[StagePlan]
) -> None:
    seed = derive_seed(0, "order")
    for place, arm in enumerate(ARMS):
        first = stage(finished, arm, 0)
        visited = first.recorded()["prompts_sampled"]
        assert visited > VISITS if arm == "dapo" else visited == VISITS
        ids = read_selection(first.selection).prompt_ids
        wanted = VISITS * (MAX_SAMPLING_ROUNDS if arm == "dapo" else 1)
        later = [p.prompt_id for p in plans[2 * place + 1].prompts]
        assert later == stage_order(ids, wanted, seed, visited)


def test_only_dynamic_sampling_drops_groups(finished: Path, plans: list[StagePlan]) -> None:
    assert [plan.dynamic_sampling for plan in plans] == [True, True, False, False]
    for row in rows(finished, "train", "dapo"):
        assert row["zero_std_share"] == 0.0
        assert row["candidates"] >= 4
    assert all("candidates" not in row for row in rows(finished, "train", "full"))
    assert [row["uninformative_trained"] for row in rows(finished, "stage", "dapo")] == [0, 0]


@pytest.mark.parametrize("arm", ARMS)
def test_the_rollouts_of_training_are_stored_with_their_stage(
    finished: Path, plans: list[StagePlan], arm: str
) -> None:
    for index in range(2):
        plan, for_arm = plans[2 * ARMS.index(arm) + index], stage(finished, arm, index)
        groups = read_rollouts(for_arm.rollouts("training"))
        sampled = for_arm.recorded()["prompts_sampled"]
        in_order = [p.prompt_id for p in plan.prompts[:sampled]]
        assert [g.prompt_id for g in groups] == list(dict.fromkeys(in_order))
        assert sum(len(g.responses) for g in groups) == sampled * plan.training.responses
        first, after = plan.first_step, plan.first_step + plan.steps
        assert {g.policy.step for g in groups} <= set(range(first, after))


@pytest.mark.parametrize("arm", ARMS)
def test_evaluations_records_and_costs_count_the_same_tokens(finished: Path, arm: str) -> None:
    evaluated = rows(finished, "evaluation", arm)
    names = ("generated_tokens", "prefill_tokens", "trained_tokens")
    assert [evaluated[0][name] for name in names] == [0, 0, 0]
    for name in names:
        counts = [row[name] for row in evaluated]
        assert counts == sorted(counts)
        assert stage(finished, arm, 1).recorded()[name] == counts[-1] > 0
    costs = [row for row in rows(finished, "cost", arm) if row["phase"] == "training"]
    last = evaluated[-1]
    assert sum(row["tokens_generated"] for row in costs) == last["generated_tokens"]
    assert sum(row["tokens_backward"] for row in costs) == last["trained_tokens"]
    forward = sum(row["tokens_forward"] for row in costs)
    assert forward == last["trained_tokens"] + last["prefill_tokens"]
