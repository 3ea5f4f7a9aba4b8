"""With dynamic sampling every trained group teaches something, and all that was sampled is paid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer

from cropi.config import PromptSource
from cropi.errors import InputError
from cropi.prompts import load_source
from cropi.rollouts.transformers_engine import TransformersEngine
from cropi.schema import Prompt, Sampling
from cropi.training import StagePlan, dynamic, find_trainer
from cropi.training.dynamic import DynamicSampler
from cropi.training.rewards import informative
from cropi.training.stage import MAX_SAMPLING_ROUNDS
from cropi.verifiers import Judge
from cropi.verifiers.verdict import Verdict
from support.trained_stage import train

MakePlan = Callable[..., StagePlan]

STEPS, SIZE, RESPONSES = 2, 2, 4


@pytest.fixture(scope="module")
def candidates() -> list[Prompt]:
    """Prompts of two skills that the model half knows; every second one has no right answer."""
    source = PromptSource(pocket=["sort", "shift"], split="pool", size=64)
    prompts = load_source(source, 0)
    return [replace(p, answer="none") if i % 2 else p for i, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def make_dynamic(make_plan: MakePlan, candidates: list[Prompt]) -> MakePlan:
    """Plans with dynamic sampling from the candidates."""

    def make(steps: int = STEPS, **grpo: Any) -> StagePlan:
        plan = make_plan("pocket", steps, **grpo)
        return replace(plan, prompts=candidates, dynamic_sampling=True)

    return make


@pytest.fixture(scope="module")
def plan(make_dynamic: MakePlan) -> StagePlan:
    return make_dynamic()


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def hopeless(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(p, answer="none") for p in prompts]


class Sampled:
    """What the engine was asked for, and what TRL was then given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[list[int]] = []
        self.responses: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.handed: list[dict[str, Any]] = []
        self.trained_tokens = 0
        generate, sample = TransformersEngine.generate, DynamicSampler.__call__
        score = GRPOTrainer._generate_and_score_completions

        def watch_engine(engine: Any, prompts: Any, sampling: Sampling, *rest: Any) -> Any:
            groups = generate(engine, prompts, sampling, *rest)
            self.samplings.append(sampling)
            self.prompts += [list(ids) for ids in prompts]
            self.responses += [c.ids.tolist() for group in groups for c in group]
            return groups

        def watch_sampler(sampler: Any, prompts: Any, trainer: Any) -> Any:
            self.handed.append(sample(sampler, prompts, trainer))
            return self.handed[-1]

        def watch_trl(trainer: Any, inputs: Any) -> Any:
            batch = score(trainer, inputs)
            masks = batch["prompt_mask"].sum() + batch["completion_mask"].sum()
            self.trained_tokens += int(masks)
            return batch

        monkeypatch.setattr(TransformersEngine, "generate", watch_engine)
        monkeypatch.setattr(DynamicSampler, "__call__", watch_sampler)
        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watch_trl)


def test_groups_without_a_gradient_are_sampled_and_paid_for_but_never_trained(
    plan: StagePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, judged_before = Sampled(monkeypatch), _judged(judge)
    outcome = train(plan, judge, tmp_path / "out")
    assert [row["zero_std_share"] for row in outcome.log] == [0.0] * STEPS
    assert outcome.uninformative_trained == 0
    trained = {i for batch in seen.handed for i in batch["prompt_id"]}
    assert trained <= {p.prompt_id for p in plan.prompts if p.answer != "none"}
    assert outcome.prompts_sampled == len(seen.prompts) > STEPS * SIZE
    assert sum(row["candidates"] for row in outcome.log) == outcome.prompts_sampled
    assert outcome.generated_tokens == sum(map(len, seen.responses))
    assert outcome.prefill_tokens == sum(map(len, seen.prompts))
    assert outcome.trained_tokens == seen.trained_tokens
    # Judged once: what TRL is told was found before.
    assert _judged(judge) - judged_before == outcome.prompts_sampled * RESPONSES
    assert sum(outcome.statuses.values()) == outcome.prompts_sampled * RESPONSES


def _judged(judge: Judge) -> int:
    return sum(sum(counts.values()) for counts in judge.counts.values())


@pytest.mark.parametrize(
    "grpo",
    [{}, {"per_device_train_batch_size": 4, "loss_type": "dapo"}, {"top_k": 5, "beta": 0.1}],
    ids=["grpo", "accumulated dapo", "top_k with KL"],
)
def test_loss_and_weights_are_those_of_trl_on_the_same_responses(
    make_dynamic: MakePlan,
    candidates: list[Prompt],
    judge: Judge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grpo: dict[str, Any],
) -> None:
    ours = make_dynamic(**grpo)
    with monkeypatch.context() as patch:
        seen = Sampled(patch)
        outcome = train(ours, judge, tmp_path / "ours")
    by_id = {p.prompt_id: p for p in candidates}
    trained = [by_id[i] for batch in seen.handed for i in batch["prompt_id"][::RESPONSES]]
    batches = iter(seen.handed)

    def repeat(trainer: Any, prompt_ids: Any, *rest: Any) -> Any:
        batch = next(batches)
        assert [list(ids) for ids in prompt_ids] == batch["prompt_ids"]
        return batch["completion_ids"], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", repeat)
    plain = replace(ours, prompts=trained, dynamic_sampling=False)
    plain_outcome = train(plain, judge, tmp_path / "theirs")
    assert [{**row, "candidates": 0} for row in outcome.log] == [
        {**row, "candidates": 0} for row in plain_outcome.log
    ]
    assert all(row["grad_norm"] > 0 for row in plain_outcome.log)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert outcome.trained_tokens == plain_outcome.trained_tokens
    assert plain_outcome.generated_tokens < outcome.generated_tokens
    assert plain_outcome.prefill_tokens < outcome.prefill_tokens


def test_a_stage_that_was_killed_and_trained_again_leaves_the_same_bytes(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    def kill(done: int, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, judge, tmp_path / "killed", progress=kill)
    first, second = (train(plan, judge, tmp_path / name) for name in ("first", "second"))
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert replace(first, clock=[]) == replace(second, clock=[])


def test_the_next_stage_goes_on_with_the_candidates_and_draws_as_one_stage_would(
    make_dynamic: MakePlan, plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    one = train(make_dynamic(STEPS + 1), judge, tmp_path / "whole")
    first = train(plan, judge, tmp_path / "first")
    rest, start = plan.prompts[first.prompts_sampled :], str(tmp_path / "first")
    later = replace(make_dynamic(1), start=start, first_step=STEPS, prompts=rest)
    second = train(later, judge, tmp_path / "second")
    assert one.prompts_sampled == first.prompts_sampled + second.prompts_sampled
    assert one.generated_tokens == first.generated_tokens + second.generated_tokens
    assert one.log[-1]["candidates"] == second.log[-1]["candidates"]
    # TRL shuffles a step's responses by a random state that a new stage shifts: sums round anew.
    for name in ("reward", "grad_norm", "entropy"):
        assert one.log[-1][name] == pytest.approx(second.log[-1][name], rel=1e-4) != 0


def test_a_pool_that_teaches_nothing_is_given_up_after_the_rounds(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    prompts = hopeless(list(plan.prompts))
    assert len(prompts) > STEPS * SIZE * MAX_SAMPLING_ROUNDS
    outcome = train(replace(plan, prompts=prompts), judge, tmp_path / "out")
    assert outcome.prompts_sampled == STEPS * SIZE * MAX_SAMPLING_ROUNDS
    assert outcome.uninformative_trained == STEPS * SIZE
    assert [row["zero_std_share"] for row in outcome.log] == [1.0] * STEPS


@pytest.mark.parametrize("spare", [0, 3])
def test_a_step_leaves_enough_candidates_for_those_after_it(
    plan: StagePlan, judge: Judge, tmp_path: Path, spare: int
) -> None:
    prompts = hopeless(list(plan.prompts[: STEPS * SIZE + spare]))
    outcome = train(replace(plan, prompts=prompts), judge, tmp_path / "out")
    assert [row["candidates"] for row in outcome.log] == [SIZE + spare, SIZE]
    assert (outcome.prompts_sampled, outcome.uninformative_trained) == (len(prompts), STEPS * SIZE)


def test_fillers_are_the_groups_dropped_last(
    plan: StagePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = hopeless(list(plan.prompts[: STEPS * SIZE + 3]))
    seen = Sampled(monkeypatch)
    train(replace(plan, prompts=prompts), judge, tmp_path / "out")
    trained = [i for batch in seen.handed for i in batch["prompt_id"][::RESPONSES]]
    assert trained == [p.prompt_id for p in prompts[3:]]


def test_a_sampler_that_hands_over_groups_without_a_gradient_is_found_out(
    plan: StagePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic, "informative", lambda verdicts: True)
    with pytest.raises(AssertionError, match="without a gradient"):
        train(plan, judge, tmp_path / "out")


def test_responses_are_drawn_as_trl_would_draw_them(
    make_dynamic: MakePlan, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plan = Sampled(monkeypatch), make_dynamic(1, top_k=5)
    training = plan.training.model_copy(update={"temperature": 0.9, "max_new_tokens": 7})
    rollouts = plan.rollouts.model_copy(update={"top_p": 0.95, "temperature": 0.5})
    train(replace(plan, training=training, rollouts=rollouts), judge, tmp_path / "out")
    assert set(seen.samplings) == {Sampling(0.9, 0.95, 5, 7)}


def test_plain_stages_take_no_more_prompts_than_they_train_on(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="prompts for 4 rows"):
        train(replace(plan, dynamic_sampling=False), judge, tmp_path / "out")


@pytest.mark.parametrize(
    "grpo",
    [{"min_p": 0.1}, {"log_completions": True}, {"generation_kwargs": {"num_beams": 2}}],
)
def test_settings_that_only_trls_own_sampling_reads_are_refused(
    make_dynamic: MakePlan, grpo: dict[str, Any]
) -> None:
    plan = make_dynamic(**grpo)
    find_trainer(plan.training.engine).check(replace(plan, dynamic_sampling=False))
    with pytest.raises(InputError, match=f"{next(iter(grpo))}.*dynamic sampling"):
        find_trainer(plan.training.engine).check(plan)


def test_a_candidate_that_exceeds_the_context_is_told_before_any_step(
    plan: StagePlan, judge: Judge, tmp_path: Path
) -> None:
    long = replace(plan.prompts[0], prompt="1" * 5000, prompt_id="long")
    with pytest.raises(InputError, match="prompt long has 5000 tokens"):
        train(replace(plan, prompts=[*plan.prompts, long]), judge, tmp_path / "out")


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([1.0, 0.0], True),
        ([0.5, 0.25, 0.5], True),
        ([1.0, 1.0], False),
        ([0.0, 0.0], False),
        ([1.0, math.nan], False),
        ([1.0, math.nan, 0.0], True),
        ([math.nan, math.nan], False),
    ],
)
def test_only_judged_rewards_that_differ_make_a_gradient(
    rewards: list[float], wanted: bool
) -> None:
    verdicts = [Verdict(r, "timeout" if math.isnan(r) else "ok") for r in rewards]
    assert informative(verdicts) is wanted
