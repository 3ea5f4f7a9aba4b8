"""A prompt whose responses go through the model in parts has the gradient that it has whole."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import peft
import pytest
import torch
from torch import nn

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients import long_groups
from cropi.gradients.batching import BatchLimits, group_parts, size_of
from cropi.gradients.collation import prepare
from cropi.gradients.consumers import Directions, DotConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.pass_record import ExtractionReport
from cropi.schema import RolloutGroup
from cropi.sketches import SketchBuffer, SketchConsumer, make_sketch
from support.oracle import oracle_gradient
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

WHOLE = 10**6
"""A batch that holds any group."""


def judged_twice(count: int, seed: int = 1) -> list[RolloutGroup]:
    """Groups with a response twice, under other rewards, and some tokens that are not sampled."""
    groups = mixed_groups(count, seed)
    for group in groups:
        first, last = group.responses[0], group.responses[-1]
        last.loss_mask = (np.arange(len(last.ids)) % 3 != 1).astype(np.uint8)
        group.responses.append(dataclasses.replace(first, reward=first.reward + 0.5))
    return groups


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parts_under_every_objective_equal_the_oracle(
    qwen: nn.Module, options: dict, share_prefix: bool
) -> None:
    groups = judged_twice(3)
    expected = [oracle_gradient(qwen, group, method_of(options)) for group in groups]
    settings = {"batch_tokens": 14, "share_prefix": share_prefix}
    assert_equal_gradients(
        gradients(qwen, groups, ObjectiveConfig(**options), **settings), expected
    )


def adapted(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    model = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral-window", "adapters", "checkpointed"])
def test_parts_of_every_kind_of_model_equal_the_whole(qwen: nn.Module, name: str) -> None:
    is_qwen = name in ("adapters", "checkpointed")
    model = (adapted(qwen) if name == "adapters" else qwen) if is_qwen else tiny_model(name)
    settings = {"gradient_checkpointing": name == "checkpointed"}
    groups = judged_twice(4)
    expected = gradients(model, groups, batch_tokens=WHOLE, **settings)
    for batch_tokens in (1, 18):
        actual = gradients(model, groups, batch_tokens=batch_tokens, **settings)
        assert_equal_gradients(actual, expected, 1e-6)


def measured(
    model: nn.Module, groups: list[RolloutGroup], batch_tokens: int, kind: str
) -> tuple[dict[str, np.ndarray], ExtractionReport]:
    """Norms, dots with two directions, and sketches of rows and of factors."""
    extractor = GradientExtractor(model, batch_tokens=batch_tokens, sum_memory=kind)
    directions = Directions(extractor.shapes, 2, extractor.device, kind)
    torch.manual_seed(0)
    for values in directions.values.values():
        values.copy_(torch.randn(values.shape))
    norms = NormConsumer(len(groups), extractor.device)
    dots = DotConsumer(directions, len(groups))
    consumers, sketched = [norms, dots], {}
    for name in ("windowed", "kronecker"):
        sketch = make_sketch(name, extractor.shapes, 0)
        sketched[name] = SketchBuffer(len(groups), sketch.dim)
        consumers.append(SketchConsumer(sketch, sketched[name], extractor.device))
    report = extractor.run(groups, consumers)
    values = {"norms": norms.norms, "dots": dots.dots}
    for name, buffer in sketched.items():
        values |= {name: buffer.sketches.numpy(), f"norms of {name}": buffer.norms.numpy()}
    return values, report


@pytest.mark.parametrize("kind", ["fp32", "bf16", "offload"])
def test_every_consumer_sees_the_whole_gradient(qwen: nn.Module, kind: str) -> None:
    groups = judged_twice(5)
    expected, whole = measured(qwen, groups, WHOLE, kind)
    actual, parts = measured(qwen, groups, 14, kind)
    for name, values in expected.items():
        errors = np.linalg.norm(actual[name] - values, axis=-1)
        sizes = np.linalg.norm(values, axis=-1)
        assert np.all(errors <= 2e-6 * sizes), name
    assert parts.ratios is not None
    assert whole.ratios is not None
    assert parts.ratios.tokens == whole.ratios.tokens
    assert parts.ratios.kl == pytest.approx(whole.ratios.kl, rel=1e-6)
    np.testing.assert_allclose(parts.current_rewards, whole.current_rewards, rtol=1e-6)
    assert parts.tokens > whole.tokens, "what parts cost more is counted"


def largest_pass(model: nn.Module, responses: int, batch_tokens: int) -> int:
    """The positions of the largest pass over one group, its short checking prompt aside."""
    groups = [random_group(np.random.default_rng(3), "long", responses, longest=8)]
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].numel())
    )
    extractor = GradientExtractor(model, batch_tokens=batch_tokens)
    extractor.run(mixed_groups(1), [])
    seen.clear()
    extractor.run(groups, [NormConsumer(1, extractor.device)])
    hook.remove()
    return max(seen)


def test_passes_do_not_grow_with_the_responses_of_a_group(qwen: nn.Module) -> None:
    assert largest_pass(qwen, 8, WHOLE) < largest_pass(qwen, 64, WHOLE)
    for responses in (8, 16, 64):
        assert largest_pass(qwen, responses, 25) <= 25


def test_a_long_prompt_out_of_range_gives_nothing_and_changes_no_other(qwen: nn.Module) -> None:
    groups = judged_twice(3)
    wild = changed(groups[1], lambda r: dataclasses.replace(r, logprobs=r.logprobs - 9999))
    plain, _ = measured(qwen, groups, 14, "fp32")
    actual, report = measured(qwen, [groups[0], wild, groups[2]], 14, "fp32")
    assert report.statuses[1] not in (report.statuses[0], report.statuses[2])
    for name, values in actual.items():
        assert not values[1].any()
        np.testing.assert_array_equal(values[[0, 2]], plain[name][[0, 2]])


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("prompt", [1, 7, 200])
def test_parts_hold_every_response_once_and_keep_the_limits(
    prompt: int, share_prefix: bool
) -> None:
    rng = np.random.default_rng(prompt)
    for limits in (BatchLimits(1, 1), BatchLimits(60, 10**6), BatchLimits(10**6, 25)):
        group = prepare(0, random_group(rng, responses=20, prompt=prompt, longest=12))
        parts = group_parts(group, limits, share_prefix)
        assert [part.index for part in parts] == np.cumsum(
            [0, *(len(part.unique_ids) for part in parts)]
        ).tolist()[:-1]
        together = [ids for part in parts for ids in part.unique_ids]
        assert all(a is b for a, b in zip(together, group.unique_ids, strict=True))
        assert sum(len(part.responses) for part in parts) == len(group.responses)
        for part in parts:
            size = size_of(part, share_prefix)
            positions = max(limits.positions, 2 * prompt if share_prefix else 0)
            fits = BatchLimits(positions, limits.predictions).allow(size)
            assert fits or len(part.unique_ids) == 1
        if share_prefix and limits.predictions > 100:
            # Two neighbouring parts have more of responses than one prompt.
            shared_response = group.shared_length - prompt
            assert sum(part.shared_length for part in parts) <= 3 * shared_response + 2 * prompt


def test_a_sum_that_does_not_fit_is_an_input_error(
    qwen: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object) -> Directions:
        raise torch.OutOfMemoryError("28 GiB")

    monkeypatch.setattr(long_groups, "Directions", out_of_memory)
    extractor = GradientExtractor(qwen, batch_tokens=14)
    with pytest.raises(InputError, match=r"in parts.*batch_tokens \(now 14\).*offload"):
        extractor.run(mixed_groups(4), [])
