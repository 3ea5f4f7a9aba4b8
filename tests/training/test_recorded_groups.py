"""A stage returns the rollouts it made: all of them, as sampled and judged, with log-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from cropi.policy.loading import Policy, load_policy
from cropi.prompts.encoding import encode_all
from cropi.rollouts import read_rollouts, write_rollouts
from cropi.schema import Prompt, Response, RolloutGroup
from cropi.training import StageOutcome, StagePlan, find_trainer, one_group_per_prompt
from cropi.training.recorded_groups import LossLogprobs
from cropi.verifiers import Judge

MakePlan = Callable[..., StagePlan]
STEPS, SIZE, RESPONSES = 2, 2, 4


def train(plan: StagePlan, judge: Judge, out: Path) -> StageOutcome:
    out.mkdir(parents=True)
    return find_trainer(plan.training.engine).train(plan, judge, out)


@pytest.fixture(scope="module")
def start() -> Policy:
    return load_policy("pocket", device="cpu")


@pytest.fixture(scope="module")
def outcome(
    make_plan: MakePlan, judge: Judge, tmp_path_factory: pytest.TempPathFactory
) -> StageOutcome:
    """Two steps of TRL's own sampling, in device batches that split groups."""
    plan = make_plan("pocket", STEPS, per_device_train_batch_size=2)
    return train(plan, judge, tmp_path_factory.mktemp("stage") / "out")


def test_every_group_that_trl_sampled_is_returned_in_order(
    outcome: StageOutcome, prompts: list[Prompt], start: Policy
) -> None:
    groups = outcome.rollouts
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts[: STEPS * SIZE]]
    assert [len(g.responses) for g in groups] == [RESPONSES] * (STEPS * SIZE)
    assert [g.policy.step for g in groups] == [0, 0, 1, 1]
    encoded = encode_all(start.tokenizer, prompts[: STEPS * SIZE], {})
    assert [g.prompt_ids.tolist() for g in groups] == encoded
    assert sum(g.tokens for g in groups) == outcome.generated_tokens


def test_token_ids_are_those_of_the_texts_and_rewards_those_of_the_judge(
    outcome: StageOutcome, prompts: list[Prompt], judge: Judge, start: Policy
) -> None:
    by_id = {p.prompt_id: p for p in prompts}
    for group in outcome.rollouts:
        texts = [r.text for r in group.responses]
        ids = [r.ids.tolist() for r in group.responses]
        assert start.tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
        verdicts = judge.judge([(by_id[group.prompt_id], text) for text in texts], ids)
        assert [r.reward for r in group.responses] == [v.reward for v in verdicts]
        assert {r.reward_status for r in group.responses} == {"ok"}
        ended = [row[-1] in start.eos_token_ids for row in ids]
        assert [r.finish_reason == "stop" for r in group.responses] == ended
    rewards = [r.reward for g in outcome.rollouts[:SIZE] for r in g.responses]
    assert outcome.log[0]["reward"] == pytest.approx(np.mean(rewards))


def logprobs_under(policy: Policy, group: RolloutGroup, ids: list[int]) -> np.ndarray:
    """Log-probs of a response at the group's temperature, by a forward pass of its own."""
    prompt = group.prompt_ids.tolist()
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    table = torch.log_softmax(logits.double() / group.sampling.temperature, dim=-1)
    return table[torch.arange(len(ids)), torch.tensor(ids)].numpy()


def require_logprobs_of(policy: Policy, groups: list[RolloutGroup]) -> None:
    for group in groups:
        for response in group.responses:
            expected = logprobs_under(policy, group, response.ids.tolist())
            np.testing.assert_allclose(response.logprobs, expected, atol=1e-4)


def test_log_probs_are_those_of_the_policy_that_sampled(
    outcome: StageOutcome, make_plan: MakePlan, judge: Judge, start: Policy, tmp_path: Path
) -> None:
    assert {g.logprob_mode for g in outcome.rollouts} == {"recomputed"}
    require_logprobs_of(start, outcome.rollouts[:SIZE])
    plan = make_plan("pocket", 1, per_device_train_batch_size=2)
    train(plan, judge, tmp_path / "out")
    after_one_step = load_policy(tmp_path / "out", device="cpu")
    require_logprobs_of(after_one_step, outcome.rollouts[SIZE:])


def test_a_reference_policy_is_not_taken_for_the_sampler(
    make_plan: MakePlan, judge: Judge, start: Policy, tmp_path: Path
) -> None:
    plan = make_plan("pocket", 1, beta=0.5)
    train(plan, judge, tmp_path / "first")
    later = make_plan(str(tmp_path / "first"), 1, first_step=1, beta=0.5)
    groups = train(later, judge, tmp_path / "second").rollouts
    assert [g.policy.step for g in groups] == [1] * SIZE
    require_logprobs_of(load_policy(tmp_path / "first", device="cpu"), groups)


def test_dynamic_sampling_returns_dropped_groups_too_with_the_engines_log_probs(
    make_plan: MakePlan, prompts: list[Prompt], judge: Judge, start: Policy, tmp_path: Path
) -> None:
    plan = replace(
        make_plan("pocket", 1),
        prompts=[replace(p, answer="none") if i % 2 else p for i, p in enumerate(prompts)],
        dynamic_sampling=True,
    )
    outcome = train(plan, judge, tmp_path / "out")
    groups = outcome.rollouts
    assert len(groups) == outcome.prompts_sampled > SIZE
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in plan.prompts[: len(groups)]]
    assert not all(g.informative for g in groups)
    assert {g.logprob_mode for g in groups} == {"processed"}
    require_logprobs_of(start, groups)


def test_a_rollout_file_keeps_what_a_stage_returned(outcome: StageOutcome, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "training.parquet", one_group_per_prompt(outcome.rollouts))
    stored = read_rollouts(tmp_path / "training.parquet")
    for sent, read in zip(outcome.rollouts, stored, strict=True):
        facts = ("prompt_id", "policy", "sampling", "seed", "logprob_mode")
        assert [getattr(read, f) for f in facts] == [getattr(sent, f) for f in facts]
        require_same_responses(read.responses, sent.responses)


def require_same_responses(read: list[Response], sent: list[Response]) -> None:
    for one, other in zip(read, sent, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert (one.text, one.reward, one.finish_reason) == (
            other.text,
            other.reward,
            other.finish_reason,
        )


def test_a_prompt_that_a_stage_samples_twice_is_one_group_of_the_file(
    outcome: StageOutcome, tmp_path: Path
) -> None:
    first, second, *rest = outcome.rollouts
    again = replace(first, policy=replace(first.policy, step=3))
    write_rollouts(tmp_path / "x.parquet", one_group_per_prompt([first, second, again, *rest]))
    stored = read_rollouts(tmp_path / "x.parquet")
    assert [g.prompt_id for g in stored] == [g.prompt_id for g in outcome.rollouts]
    require_same_responses(stored[0].responses, [*first.responses, *again.responses])
    versions = [r.policy_versions for r in stored[0].responses]
    steps = [set(v.tolist()) for v in versions if v is not None]
    assert steps == [{0}] * RESPONSES + [{3}] * RESPONSES
    require_same_responses(stored[1].responses, second.responses)


def test_groups_whose_log_probs_the_loss_does_not_compute_are_left_out(
    make_plan: MakePlan, judge: Judge, tmp_path: Path
) -> None:
    plan = make_plan("pocket", STEPS, mask_truncated_completions=True)
    plan = replace(plan, rollouts=plan.rollouts.model_copy(update={"max_new_tokens": 4}))
    outcome = train(plan, judge, tmp_path / "out")
    finished = {r.finish_reason for g in outcome.rollouts for r in g.responses}
    assert len(outcome.rollouts) < STEPS * SIZE
    assert finished <= {"stop"}


def test_padding_on_either_side_is_not_part_of_a_response() -> None:
    def compute(*batch: object) -> tuple[Tensor, None, None]:
        return torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -4.0, -5.0]]), None, None

    trainer = SimpleNamespace(_get_per_token_logps_and_entropies=compute)
    losses = LossLogprobs(trainer)
    ids = torch.tensor([[0, 7, 8, 5, 1, 0], [6, 7, 8, 5, 5, 5]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        trainer._get_per_token_logps_and_entropies(None, ids, mask, 3)
    assert losses.take() == {}
    trainer._get_per_token_logps_and_entropies(None, ids, mask, 3)
    taken = {key: values.tolist() for key, values in losses.take().items()}
    assert taken == {((7, 8), (5, 1)): [-1.0, -2.0], ((6, 7, 8), (5, 5, 5)): [-3.0, -4.0, -5.0]}
    assert losses.take() == {}
