"""Tokens that are not the policy's condition what follows and contribute nothing themselves."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cropi.config import ObjectiveConfig
from cropi.gradients.collation import collate, prepare
from cropi.gradients.logprobs import LogprobReader, read_logprobs, read_objectives
from cropi.gradients.objective import ResponseTensors, objective, token_weights
from cropi.schema import Response, RolloutGroup
from support.oracle import flatten, oracle_gradient, oracle_objective
from support.tiny_models import (
    OPTIONS,
    assert_equal_gradients,
    changed,
    gradients,
    method_of,
    mixed_groups,
    random_group,
    tiny_model,
)


def with_mask(response: Response, mask: list[int] | np.ndarray) -> Response:
    return dataclasses.replace(response, loss_mask=np.asarray(mask, dtype=np.uint8))


def masked_groups(count: int, seed: int = 0) -> list[RolloutGroup]:
    """Groups whose responses have a random third of their tokens masked, never all of them."""
    rng = np.random.default_rng(seed)

    def masked(response: Response) -> Response:
        mask = rng.random(len(response.ids)) < 2 / 3
        mask[rng.integers(len(mask))] = True
        return with_mask(response, mask)

    return [changed(group, masked) for group in mixed_groups(count, seed, longest=9)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_masked_responses_equal_the_oracle(qwen: nn.Module, options: dict) -> None:
    groups = masked_groups(4, seed=3)
    expected = [oracle_gradient(qwen, group, method_of(options)) for group in groups]
    config = ObjectiveConfig(**options)
    assert_equal_gradients(gradients(qwen, groups, config, path="shared"), expected)


@pytest.mark.parametrize("name", ["gpt2", "mistral-window", "opt"])
def test_every_path_honours_the_mask(name: str) -> None:
    model, groups = tiny_model(name), masked_groups(3)
    expected = [oracle_gradient(model, group) for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for share_prefix in (True, False):
            settings = {"share_prefix": share_prefix, "batch_tokens": 70}
            assert_equal_gradients(gradients(model, groups, **settings), expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_objectives_of_masked_responses_equal_the_oracle(qwen: nn.Module, options: dict) -> None:
    groups, double = masked_groups(5, seed=4), qwen.double()
    actual = read_objectives(LogprobReader(double), groups, ObjectiveConfig(**options))
    with torch.no_grad():
        expected = [float(oracle_objective(double, g, method_of(options))) for g in groups]
    # The fast path takes its normalisers in float32.
    assert actual.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_log_probs_of_masked_tokens_change_no_bit(qwen: nn.Module, options: dict) -> None:
    groups = masked_groups(3)

    def unreadable(response: Response) -> Response:
        logprobs = np.where(response.sampled, response.logprobs, np.nan).astype(np.float32)
        return dataclasses.replace(response, logprobs=logprobs)

    config = ObjectiveConfig(**options)
    before = gradients(qwen, groups, config)
    after = gradients(qwen, [changed(group, unreadable) for group in groups], config)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(flatten(a), flatten(b))


def test_a_mask_of_ones_is_no_mask_bit_for_bit(qwen: nn.Module) -> None:
    groups = mixed_groups(4)
    masked = [changed(g, lambda r: with_mask(r, np.ones(len(r.ids)))) for g in groups]
    for a, b in zip(gradients(qwen, groups), gradients(qwen, masked), strict=True):
        assert torch.equal(flatten(a), flatten(b))


def test_a_masked_tail_is_as_if_the_response_ended_before_it_bit_for_bit(qwen: nn.Module) -> None:
    groups = mixed_groups(4, seed=2)

    def extended(response: Response) -> Response:
        tail = 1 + len(response.ids) % 3
        return Response(
            np.concatenate([response.ids, np.arange(7, 7 + tail, dtype=np.int32)]),
            np.concatenate([response.logprobs, np.full(tail, np.nan, dtype=np.float32)]),
            reward=response.reward,
            loss_mask=np.repeat(np.array([1, 0], np.uint8), [len(response.ids), tail]),
        )

    longer = [changed(group, extended) for group in groups]
    for a, b in zip(gradients(qwen, longer), gradients(qwen, groups), strict=True):
        assert torch.equal(flatten(a), flatten(b))


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_policy_token_is_enough(qwen: nn.Module, options: dict, place: str) -> None:
    def only_one(response: Response) -> Response:
        mask = np.zeros(len(response.ids), dtype=np.uint8)
        mask[0 if place == "first" else -1] = 1
        return with_mask(response, mask)

    groups = [changed(group, only_one) for group in mixed_groups(3, seed=8)]
    expected = [oracle_gradient(qwen, group, method_of(options)) for group in groups]
    assert_equal_gradients(gradients(qwen, groups, ObjectiveConfig(**options)), expected)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_masked_tokens_still_condition_later_ones(qwen: nn.Module, share_prefix: bool) -> None:
    group = random_group(np.random.default_rng(4), responses=3)

    def observed(response: Response, token: int) -> Response:
        """Two policy tokens with an observation between them."""
        ids = np.array([5, token, 6 + int(10 * response.reward)], dtype=np.int32)
        return Response(ids, np.full(3, -4, dtype=np.float32), reward=response.reward)

    def seen(token: int) -> RolloutGroup:
        return changed(group, lambda r: with_mask(observed(r, token), [1, 0, 1]))

    one, other = (gradients(qwen, [seen(t)], share_prefix=share_prefix)[0] for t in (20, 21))
    assert not torch.allclose(flatten(one), flatten(other), rtol=1e-2)
    for token, actual in ((20, one), (21, other)):
        assert_equal_gradients([actual], [oracle_gradient(qwen, seen(token))])


def test_equal_tokens_are_merged_only_under_equal_masks(qwen: nn.Module) -> None:
    group = random_group(np.random.default_rng(5), responses=3)
    ids = np.array([5, 6, 7], dtype=np.int32)
    logprobs = np.full(3, -4, dtype=np.float32)
    group.responses += [
        Response(ids, logprobs, reward=0.3, loss_mask=np.array(mask, dtype=np.uint8))
        for mask in ([1, 0, 1], [1, 1, 0], [1, 0, 1])
    ]
    group.responses += [Response(ids, logprobs, reward=0.8)]
    prepared = prepare(0, group)
    assert prepared.unique_index == [0, 1, 2, 3, 4, 3, 5]
    assert_equal_gradients(gradients(qwen, [group]), [oracle_gradient(qwen, group)])


def test_a_response_without_a_policy_token_leaves_the_group(qwen: nn.Module) -> None:
    (group,) = mixed_groups(1, seed=6)
    silent = with_mask(dataclasses.replace(group.responses[0], reward=9.0), [0] * 99)
    silent.loss_mask = np.zeros(len(silent.ids), dtype=np.uint8)
    larger = dataclasses.replace(group, responses=[silent, *group.responses])
    for a, b in zip(gradients(qwen, [larger]), gradients(qwen, [group]), strict=True):
        assert torch.equal(flatten(a), flatten(b))


def test_read_log_probs_are_nan_at_masked_tokens_and_unchanged_elsewhere(qwen: nn.Module) -> None:
    masked = masked_groups(4)
    plain = [changed(g, lambda r: dataclasses.replace(r, loss_mask=None)) for g in masked]
    actual, expected = (read_logprobs(LogprobReader(qwen), groups) for groups in (masked, plain))
    for group, group_found, group_expected in zip(masked, actual, expected, strict=True):
        for response, a, b in zip(group.usable, group_found, group_expected, strict=True):
            assert np.array_equal(np.isnan(a), ~response.sampled)
            assert a[response.sampled] == pytest.approx(b[response.sampled], abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_holes_in_the_objectives_mask_are_as_good_as_leaving_tokens_out(options: dict) -> None:
    """The pure objective, given full-length tensors, ignores wild numbers at masked places."""
    groups = masked_groups(4, seed=7)
    compact = collate(
        [prepare(n, g) for n, g in enumerate(groups)], False, torch.device("cpu")
    ).responses
    responses = [r for g in groups for r in g.usable]
    longest = max(len(r.ids) for r in responses)
    mask_RT = torch.zeros(len(responses), longest, dtype=torch.bool)
    for row, response in enumerate(responses):
        mask_RT[row, : len(response.ids)] = torch.from_numpy(response.sampled)
    full = ResponseTensors(
        torch.full(mask_RT.shape, 55.0, dtype=torch.float64).masked_scatter(
            mask_RT, compact.behaviour_RT[compact.mask_RT]
        ),
        mask_RT,
        compact.rewards_R,
        compact.group_R,
        compact.groups,
    )
    logp_RT = compact.behaviour_RT + 0.3 * torch.randn(
        compact.mask_RT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    wild_RT = torch.full(mask_RT.shape, 700.0, dtype=torch.float64)
    wild_RT = wild_RT.masked_scatter(mask_RT, logp_RT[compact.mask_RT])
    config = ObjectiveConfig(**options)
    expected = objective(logp_RT, compact, config)
    assert torch.allclose(objective(wild_RT, full, config), expected, rtol=1e-12)
    weights_RT = token_weights(wild_RT, full, config)
    assert not weights_RT[~mask_RT].any()
    expected_weights = token_weights(logp_RT, compact, config)[compact.mask_RT]
    assert torch.allclose(weights_RT[mask_RT], expected_weights, rtol=1e-12)
