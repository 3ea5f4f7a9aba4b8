"""Gradients of single responses are the terms that a prompt's gradient is the sum of."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.response_gradients import ResponseGroups, ResponseProducts
from cropi.schema import RolloutGroup
from support.oracle import flatten, oracle_response_gradients
from support.tiny_models import (
    OPTIONS,
    GradientStore,
    changed,
    method_of,
    mixed_groups,
    tiny_model,
)


def with_equals(count: int, seed: int = 1) -> list[RolloutGroup]:
    """Groups with masks, a response twice, and one twice under another reward or log-probs."""
    groups = mixed_groups(count, seed)
    for group in groups:
        first = group.responses[0]
        mask = np.ones(len(first.ids), np.uint8)
        mask[1:] = np.arange(1, len(first.ids)) % 2
        group.responses[1].loss_mask = None
        group.responses += [
            dataclasses.replace(first),
            dataclasses.replace(first, reward=first.reward + 0.5),
            dataclasses.replace(first, logprobs=first.logprobs - np.float32(0.25)),
            dataclasses.replace(first, loss_mask=mask),
        ]
    return groups


def flat_gradients(
    model: nn.Module, groups: list[RolloutGroup], **settings: object
) -> tuple[ResponseGroups, Tensor, ResponseProducts]:
    """Each unique response's gradient [n, coordinates], and the products."""
    extractor = GradientExtractor(model, **settings)
    responses = ResponseGroups(groups)
    store = GradientStore(extractor, responses.count)
    products = ResponseProducts(responses, extractor.device)
    extractor.run_by_response(responses, [store, products])
    flat = torch.cat([g.flatten(1) for g in store.gradients.values()], 1)
    return responses, flat.double(), products


def assert_terms(responses: ResponseGroups, flat: Tensor, expected: list[list[Tensor]]) -> None:
    for indices, terms in zip(responses.indices, expected, strict=True):
        whole = float(torch.stack(terms).sum(0).norm())
        assert len(indices) == len(terms)
        for index, term in zip(indices.tolist(), terms, strict=True):
            assert float((flat[index] - term).norm()) <= 1e-5 * max(whole, float(term.norm()))


def oracle_terms(model: nn.Module, groups: list[RolloutGroup], options: dict) -> list[list[Tensor]]:
    method = method_of(options)
    return [[flatten(t) for t in oracle_response_gradients(model, g, method)] for g in groups]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_responses_gradient_equals_the_oracle(qwen: nn.Module, options: dict) -> None:
    groups = with_equals(4)
    settings = {"objective": ObjectiveConfig(**options), "batch_tokens": 30}
    responses, flat, _ = flat_gradients(qwen, groups, **settings)
    assert_terms(responses, flat, oracle_terms(qwen, groups, options))


@pytest.mark.parametrize("name", ["gpt2", "mistral-window", "opt"])
def test_every_path_gives_the_same_terms(name: str) -> None:
    model, groups = tiny_model(name), with_equals(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        responses, flat, _ = flat_gradients(model, groups)
    assert_terms(responses, flat, oracle_terms(model, groups, {}))


def test_adapters_have_terms_too(qwen: nn.Module) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model, groups = peft.get_peft_model(copy.deepcopy(qwen), config).eval(), with_equals(2)
    responses, flat, _ = flat_gradients(model, groups)
    assert_terms(responses, flat, oracle_terms(model, groups, {}))


def test_only_responses_with_equal_gradients_are_merged(qwen: nn.Module) -> None:
    groups = with_equals(2)
    responses, _, _ = flat_gradients(qwen, groups)
    for group, indices in zip(groups, responses.indices, strict=True):
        first, same, *others = (indices[k] for k in (0, -4, -3, -2, -1))
        assert first == same
        assert len({first, *others}) == 4 if len(group.responses[0].ids) > 2 else 3
    assert responses.multiplicities().sum() == sum(len(g.usable) for g in groups)


@pytest.mark.parametrize(("name", "batch_tokens"), [("qwen2-tied", 70), ("opt", 70), ("gemma2", 9)])
def test_products_are_those_of_the_gradients(name: str, batch_tokens: int) -> None:
    groups, model = with_equals(5), tiny_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        responses, flat, products = flat_gradients(model, groups, batch_tokens=batch_tokens)
    assert products.squares == pytest.approx(flat.square().sum(1).numpy(), rel=1e-5)
    for indices in responses.indices:
        whole = flat[torch.from_numpy(indices)].sum(0)
        expected = (flat[torch.from_numpy(indices)] @ whole).numpy()
        scale = float(whole.norm()) * np.sqrt(products.squares[indices])
        assert np.abs(products.with_sum[indices] - expected).max() < 1e-5 * scale.max()


def test_a_prompt_out_of_range_gives_zeros_and_changes_no_other(qwen: nn.Module) -> None:
    groups = mixed_groups(3)
    wild = changed(groups[1], lambda r: dataclasses.replace(r, logprobs=r.logprobs - 9999))
    _, plain, _ = flat_gradients(qwen, groups)
    responses, flat, _ = flat_gradients(qwen, [groups[0], wild, groups[2]])
    assert not flat[responses.indices[1]].any()
    for index in (0, 2):
        assert torch.equal(flat[responses.indices[index]], plain[responses.indices[index]])
