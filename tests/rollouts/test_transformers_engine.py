"""What the engine samples is what `Sampling` says, and what it stores is what it sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from cropi.errors import InputError
from cropi.policy.loading import Policy
from cropi.rollouts import load_engine
from cropi.rollouts.checked_engine import CheckedEngine
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.settings import EngineChoice
from cropi.rollouts.transformers_engine import TransformersEngine, plan_generation_batches
from cropi.schema import Sampling

PROMPTS = [[2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]


def warped_logprobs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Slow oracle: temperature, then top-k, then top-p of one position's logits [V], in float64."""
    logits = logits.double() / sampling.temperature
    if sampling.top_k:
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    if sampling.top_p < 1:
        probs, order = logits.softmax(0).sort(descending=True)
        beyond = probs.cumsum(0) - probs >= sampling.top_p
        logits[order[beyond]] = -torch.inf
    return logits.log_softmax(0)


def teacher_forced(
    policy: Policy, prompt: list[int], completion: Completion, sampling: Sampling
) -> np.ndarray:
    ids = [*prompt, *completion.ids.tolist()]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0]
    places = range(len(prompt) - 1, len(ids) - 1)
    rows = [warped_logprobs(logits[p], sampling)[ids[p + 1]].item() for p in places]
    return np.array(rows)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=8),
        Sampling(temperature=0.6, max_new_tokens=8),
        Sampling(temperature=1.3, top_p=0.8, max_new_tokens=8),
        Sampling(temperature=0.9, top_p=0.7, top_k=5, max_new_tokens=8),
    ],
)
def test_stored_logprobs_equal_a_teacher_forced_recomputation(
    any_policy: Policy, sampling: Sampling
) -> None:
    for prompts in (PROMPTS, PROMPTS[:3]):  # with and without a shared prefix
        groups = TransformersEngine(any_policy, 6).generate(prompts, sampling, 3, seed=3)
        for prompt, group in zip(prompts, groups, strict=True):
            for completion in group:
                expected = teacher_forced(any_policy, prompt, completion, sampling)
                np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_greedy_takes_the_likeliest_token_and_stores_its_own_logprob(policy: Policy) -> None:
    sampling = Sampling(temperature=0, top_k=3, max_new_tokens=6)
    groups = TransformersEngine(policy, 3).generate(PROMPTS, sampling, 1, seed=0)
    for prompt, (completion,) in zip(PROMPTS, groups, strict=True):
        expected = teacher_forced(policy, prompt, completion, Sampling())
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        ids = torch.tensor([prompt + completion.ids.tolist()])
        best = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == completion.ids.tolist()


def test_sampling_comes_from_our_config_not_from_the_models(policy: Policy) -> None:
    engine = TransformersEngine(policy, 64)
    sampling = Sampling(max_new_tokens=8)
    expected = engine.generate(PROMPTS, sampling, 16, seed=1)
    neutral = policy.model.generation_config
    policy.model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=3.0, eos_token_id=5
    )
    try:
        sampled = engine.generate(PROMPTS, sampling, 16, seed=1)
        assert policy.model.generation_config.top_k == 1, "the caller's config is put back"
    finally:
        policy.model.generation_config = neutral
    assert tokens_of(sampled) == tokens_of(expected)
    assert len({c.ids.tobytes() for c in sampled[0]}) > 8, "top_k = 1 would give one response"


def test_tokens_outside_top_50_are_sampled(policy: Policy) -> None:
    """The silent top_k = 50 of `generate` would leave 14 of 64 tokens out."""
    hot = Sampling(temperature=50.0, max_new_tokens=20)
    groups = TransformersEngine(policy, 128).generate(PROMPTS[:1], hot, 128, seed=0)
    first = {int(completion.ids[0]) for completion in groups[0]}
    assert len(first) > 50


def test_eos_is_part_of_the_response_and_nothing_after_it(policy: Policy) -> None:
    hot = Sampling(temperature=5.0, max_new_tokens=30)
    groups = TransformersEngine(policy, 64).generate(PROMPTS, hot, 32, seed=2)
    completions = [c for group in groups for c in group]
    reasons = {c.finish_reason for c in completions}
    assert reasons == {"stop", "length"}
    for completion in completions:
        assert completion.ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert len(completion.ids) == len(completion.logprobs)
        assert 1 not in completion.ids[:-1]
        assert (completion.ids[-1] == 1) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.ids) == 30


def tokens_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in groups]


def test_equal_calls_give_equal_results_and_leave_the_callers_random_state(policy: Policy) -> None:
    engine = TransformersEngine(policy, 8)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = engine.generate(PROMPTS, Sampling(max_new_tokens=6), 4, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert tokens_of(engine.generate(PROMPTS, Sampling(max_new_tokens=6), 4, seed=1)) == tokens_of(
        first
    )
    other = engine.generate(PROMPTS, Sampling(max_new_tokens=6), 4, seed=2)
    assert tokens_of(other) != tokens_of(first)


def test_a_model_in_training_mode_samples_in_eval_mode_and_returns_to_training(
    policy: Policy,
) -> None:
    policy.model.train()
    try:
        TransformersEngine(policy, 8).generate(PROMPTS, Sampling(max_new_tokens=2), 2, seed=0)
        assert policy.model.training
    finally:
        policy.model.eval()


@pytest.mark.parametrize(("n", "batch_size"), [(1, 3), (4, 8), (4, 9), (7, 3), (8, 8)])
def test_batches_hold_every_response_once_and_never_too_many(n: int, batch_size: int) -> None:
    lengths = [3, 9, 1, 4, 4, 7]
    plan = plan_generation_batches(lengths, n, batch_size)
    asked = [0] * len(lengths)
    for batch in plan:
        assert len(batch.prompts) * batch.responses <= batch_size
        for prompt in batch.prompts:
            asked[prompt] += batch.responses
    assert asked == [n] * len(lengths)
    seen = [max(lengths[p] for p in batch.prompts) for batch in plan]
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (3, r"sampling 6 responses of up to 8 tokens .* memory; lower .* batch_size \(now 6\)"),
        (1, r"sampling 1 response of up to 8 tokens .* memory; lower max_new_tokens"),
    ],
)
def test_a_batch_that_does_not_fit_in_memory_names_what_to_lower(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, responses: int, message: str
) -> None:
    def no_memory(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(policy.model, "generate", no_memory)
    prompts = PROMPTS if responses > 1 else PROMPTS[:1]
    with pytest.raises(InputError, match=message):
        TransformersEngine(policy, 6).generate(prompts, Sampling(max_new_tokens=8), responses, 0)


def test_an_engine_is_found_by_name_or_dotted_path(policy: Policy) -> None:
    assert load_engine("transformers", policy).context == 48
    dotted = "cropi.rollouts.engines.transformers:transformers"
    checked = load_engine(EngineChoice.of(dotted, batch_size=4), policy)
    assert isinstance(checked, CheckedEngine)
    assert isinstance(checked.engine, TransformersEngine)
    assert checked.engine.batch_size == 4


@pytest.mark.parametrize("name", ["vlm", "nowhere.at:all", "cropi.policy.loading:missing", ":x"])
def test_an_unknown_engine_is_a_user_error(policy: Policy, name: str) -> None:
    with pytest.raises(InputError, match="rollout engine"):
        load_engine(name, policy)
