"""Log-probs read in batches are those of one response at a time."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.collation import collate, prepare
from cropi.gradients.forward import log_probs
from cropi.gradients.logprobs import LogprobReader, read_logprobs, read_objectives
from cropi.gradients.objective import objective
from cropi.gradients.self_check import response_logprobs
from cropi.schema import RolloutGroup
from support.tiny_models import mixed_groups, random_group, random_response, tiny_model


def one_by_one(model: nn.Module, group: RolloutGroup) -> list[np.ndarray]:
    """One response at a time, nothing shared."""
    prompt = torch.from_numpy(group.prompt_ids.astype(np.int64))
    with torch.no_grad():
        return [
            response_logprobs(
                model,
                prompt,
                torch.from_numpy(r.ids.astype(np.int64)),
                group.sampling.temperature,
            ).numpy()
            for r in group.usable
        ]


@pytest.mark.parametrize(
    ("name", "path"),
    [("qwen2-tied", "shared"), ("gpt2", "shared"), ("gemma2", "shared"), ("mixtral", "shared")],
)
def test_batched_logprobs_equal_those_of_one_response_at_a_time(name: str, path: str) -> None:
    model = tiny_model(name)
    groups = mixed_groups(9)
    reader = LogprobReader(model, batch_tokens=90)
    actual = read_logprobs(reader, groups)
    assert reader.path == path
    for group, logprobs in zip(groups, actual, strict=True):
        for a, b in zip(logprobs, one_by_one(model, group), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_logprobs_do_not_depend_on_batching(batch_tokens: int, share_prefix: bool) -> None:
    model, groups = tiny_model("qwen2-tied"), mixed_groups(8)
    expected = read_logprobs(LogprobReader(model), groups)
    actual = read_logprobs(LogprobReader(model, batch_tokens, share_prefix), groups)
    for a, b in zip(expected, actual, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5)


def test_log_probs_are_aligned_with_usable_responses() -> None:
    model = tiny_model("qwen2-tied")
    group = random_group(np.random.default_rng(3), responses=4)
    first, *others = group.responses
    failed = dataclasses.replace(first, reward=float("nan"), reward_status="error")
    group.responses = [first, failed, *others, dataclasses.replace(first, reward=0.5)]
    (actual,) = read_logprobs(LogprobReader(model), [group])
    assert len(actual) == 5
    for a, b in zip(actual, one_by_one(model, group), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_an_uninformative_prompt_is_read_too() -> None:
    model = tiny_model("qwen2-tied")
    group = random_group(np.random.default_rng(3), responses=2)
    group.responses = [dataclasses.replace(r, reward=1.0) for r in group.responses]
    assert not group.informative
    (actual,) = read_logprobs(LogprobReader(model), [group])
    np.testing.assert_allclose(actual[1], one_by_one(model, group)[1], atol=2e-5)


def test_a_model_whose_batched_log_probs_would_be_wrong_is_read_one_response_at_a_time() -> None:
    class Offset(nn.Module):
        """A head whose output depends on how many positions it sees."""

        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.weight = head.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            scale = 1.0 if hidden.shape[1] < 8 else 2.0
            return scale * nn.functional.linear(hidden, self.weight)

    model = tiny_model("llama-untied")
    rng = np.random.default_rng(0)
    groups = [random_group(rng, prompt=3) for _ in range(3)]
    for group in groups:
        group.responses = [random_response(rng, 4, float(k)) for k in range(4)]
    model.lm_head = Offset(model.lm_head)
    reader = LogprobReader(model)
    with pytest.warns(UserWarning, match="one response at a time"):
        actual = read_logprobs(reader, groups)
    assert reader.path == "plain"
    for group, logprobs in zip(groups, actual, strict=True):
        for a, b in zip(logprobs, one_by_one(model, group), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_read_objectives_are_those_that_the_gradients_differentiate() -> None:
    model, groups = tiny_model("qwen2-tied"), mixed_groups(5)
    config = ObjectiveConfig(normalisation="token")
    actual = read_objectives(LogprobReader(model, 60), groups, config)
    for n, group in enumerate(groups):
        batch = collate([prepare(0, group)], False, torch.device("cpu"))
        logprobs = [torch.from_numpy(values).double() for values in one_by_one(model, group)]
        padded = nn.utils.rnn.pad_sequence(logprobs, batch_first=True)
        expected = objective(padded, batch.responses, config)
        assert actual[n] == pytest.approx(float(expected), abs=1e-5)


def test_rollouts_of_another_vocabulary_are_refused() -> None:
    group = random_group(np.random.default_rng(0))
    group.prompt_ids = np.array([1, 99], dtype=np.int32)
    with pytest.raises(InputError, match="token id 99"):
        read_logprobs(LogprobReader(tiny_model("qwen2-tied")), [group])


def test_reading_leaves_the_model_unchanged() -> None:
    model = tiny_model("qwen2-tied").train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_logprobs(LogprobReader(model), mixed_groups(3))
    assert model.training
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_normalisers_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([prepare(0, mixed_groups(1)[0])], True, torch.device("cpu"))
    logits = torch.randn(len(batch.predictors_S), 64)
    expected = torch.logsumexp(logits / batch.temperature_S[:, None], 1)
    monkeypatch.setattr("cropi.gradients.forward.CHUNK_BYTES", {"cpu": 3 * 64 * 4})
    torch.testing.assert_close(log_probs(logits, batch)[0], expected)
