"""Invariant 1: gradients equal a plain float64 autograd loop over responses and tokens."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cropi.config import ObjectiveConfig
from cropi.gradients.collation import collate, prepare
from cropi.gradients.objective import advantages, objective, token_weights
from support.oracle import Method, flatten, oracle_gradient, oracle_objective
from support.tiny_models import (
    FAST,
    OPTIONS,
    SLOW,
    WINDOW,
    assert_equal_gradients,
    gradients,
    method_of,
    mixed_groups,
    random_group,
    random_response,
    tiny_model,
)

STEP = 1e-4
"""Of the finite differences: far above the rounding of norms, which models take in float32."""


@pytest.mark.parametrize("name", FAST)
def test_fast_gradients_equal_the_oracle(name: str) -> None:
    model, groups = tiny_model(name), mixed_groups(6)
    expected = [oracle_gradient(model, group) for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = gradients(model, groups, path="shared", batch_tokens=80)
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("name", SLOW)
def test_models_without_rules_take_the_slow_path_and_equal_the_oracle(name: str) -> None:
    model, groups = tiny_model(name), mixed_groups(3)
    expected = [oracle_gradient(model, group) for group in groups]
    with pytest.warns(UserWarning, match="one prompt at a time"):
        actual = gradients(model, groups, path="autograd")
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_the_objective_equals_the_oracle(qwen: nn.Module, options: dict) -> None:
    groups = mixed_groups(4, seed=3)
    expected = [oracle_gradient(qwen, group, method_of(options)) for group in groups]
    actual = gradients(qwen, groups, ObjectiveConfig(**options), path="shared")
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_objective_values_equal_the_oracle_in_any_batch(qwen: nn.Module, options: dict) -> None:
    groups = mixed_groups(5, seed=4)
    double = qwen.double()
    prepared = [prepare(n, group) for n, group in enumerate(groups)]
    responses = collate(prepared, share_prefix=False, device=torch.device("cpu")).responses
    logp_RT = torch.zeros(responses.mask_RT.shape, dtype=torch.float64)
    flat = [(group, response) for group in groups for response in group.responses]
    with torch.no_grad():
        for row, (group, response) in enumerate(flat):
            logp_RT[row, : len(response.ids)] = log_probs(double, group, response)
        actual = objective(logp_RT, responses, ObjectiveConfig(**options))
        expected = [float(oracle_objective(double, g, method_of(options))) for g in groups]
    assert actual.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def log_probs(model, group, response) -> torch.Tensor:
    ids = torch.tensor([group.prompt_ids.tolist() + response.ids.tolist()])
    logits = model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1]
    logps = torch.log_softmax(logits / group.sampling.temperature, -1)
    return logps.gather(1, torch.tensor(response.ids.tolist())[:, None]).squeeze(1)


def test_advantages_use_the_sample_standard_deviation() -> None:
    group = random_group(np.random.default_rng(0), responses=3)
    for response, reward in zip(group.responses, (0.0, 1.0, 1.0), strict=True):
        response.reward = reward
    responses = collate([prepare(0, group)], False, torch.device("cpu")).responses
    actual = advantages(responses, torch.ones(3, dtype=torch.float64), scale_by_std=True)
    std = math.sqrt(1 / 3)
    expected = [-2 / 3 / (std + 1e-4), 1 / 3 / (std + 1e-4), 1 / 3 / (std + 1e-4)]
    assert actual.tolist() == pytest.approx(expected, rel=1e-12)


def test_padding_has_no_weight_even_where_its_log_probs_are_wild(qwen: nn.Module) -> None:
    prepared = [prepare(n, group) for n, group in enumerate(mixed_groups(3, seed=5))]
    responses = collate(prepared, False, torch.device("cpu")).responses
    logp_RT = torch.full(responses.mask_RT.shape, 700.0, dtype=torch.float64)
    logp_RT[responses.mask_RT] = -4.0
    for options in OPTIONS.values():
        weights_RT = token_weights(logp_RT, responses, ObjectiveConfig(**options))
        assert torch.isfinite(weights_RT).all()
        assert not weights_RT[~responses.mask_RT].any()


def test_a_row_longer_than_the_sliding_window_equals_the_oracle() -> None:
    model = tiny_model("mistral-window")
    rng = np.random.default_rng(6)
    groups = [random_group(rng, f"p{n}", prompt=3 + n, longest=3 * WINDOW) for n in range(3)]
    groups += [random_group(rng, "short", responses=2, prompt=3, longest=3)]
    expected = [oracle_gradient(model, group) for group in groups]
    assert_equal_gradients(gradients(model, groups), expected)


def test_short_rows_beside_a_long_shared_row_stay_within_learned_positions() -> None:
    model = tiny_model("gpt2")
    rng = np.random.default_rng(7)
    long = random_group(rng, "long", responses=12, prompt=8)
    for n, response in enumerate(long.responses):
        long.responses[n] = random_response(rng, 9, response.reward)
    groups = [long, random_group(rng, "short", responses=2, prompt=2, longest=3)]
    assert prepare(0, long).shared_length > model.config.n_positions
    expected = [oracle_gradient(model, group) for group in groups]
    actual = gradients(model, groups, path="shared", batch_tokens=10**6)
    assert_equal_gradients(actual, expected)


def test_the_slow_path_equals_the_oracle_on_a_model_that_does_not_need_it(
    qwen: nn.Module,
) -> None:
    from cropi.gradients.self_check import prompt_gradient

    parameters = dict(qwen.named_parameters())
    groups = mixed_groups(3, seed=8)
    actual = [prompt_gradient(qwen, parameters, prepare(0, g), ObjectiveConfig()) for g in groups]
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])


def test_finite_differences_agree_with_the_oracle(qwen: nn.Module) -> None:
    """The oracle's own check: J moves by eps times the gradient's norm along the gradient."""
    (group,) = mixed_groups(1, seed=9)
    gradient = oracle_gradient(qwen, group)
    length = flatten(gradient).norm()
    double = qwen.double()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in double.named_parameters():
                parameter.add_(gradient[name] / length, alpha=sign * STEP)
            # The advantages are constants of the objective, so nothing else moves.
            values.append(float(oracle_objective(double, group, Method())))
            for name, parameter in double.named_parameters():
                parameter.sub_(gradient[name] / length, alpha=sign * STEP)
    assert (values[0] - values[1]) / (2 * STEP) == pytest.approx(float(length), rel=1e-3)
