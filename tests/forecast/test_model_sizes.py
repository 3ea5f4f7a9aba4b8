"""Sizes that are counted without weights are those of the real thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cropi.config import load_config
from cropi.errors import InputError
from cropi.forecast.memory import direction_bytes, pass_tokens, sum_bytes
from cropi.forecast.model_shape import read_shape
from cropi.forecast.prompt_counts import PromptCounts, SetCount
from cropi.gradients.consumers import DirectionConsumer, Directions
from cropi.influence.targets import half_weights
from cropi.policy.loading import load_policy
from cropi.training.settings import LoraConfig
from cropi.training.start_policy import with_adapters
from support.tiny_runs import tiny_config


def test_parameters_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    shape, tokenizer = read_shape(tiny_config(tmp_path))
    model = load_policy("pocket").model
    assert shape.parameters == shape.trained == shape.compared
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert len(tokenizer("abc")["input_ids"]) == 3


def test_compared_parameters_are_those_that_patterns_choose(tmp_path: Path) -> None:
    shape, _ = read_shape(tiny_config(tmp_path, "influence.parameters=['*.mlp.*']"))
    model = load_policy("pocket").model
    assert shape.compared == sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n)
    assert shape.trained == shape.parameters > shape.compared


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, down_proj]", ".*up_proj"])
def test_adapters_are_counted_as_peft_makes_them(targets: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = tiny_config(tmp_path, f"training.lora={{r: 3, target_modules: {targets}}}")
    assert isinstance(config.training.lora, LoraConfig)
    adapted = with_adapters(load_policy("pocket").model, config.training.lora, seed=0)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape, _ = read_shape(config)
    assert shape.trained == shape.compared == trainable


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"influence\.parameters"):
        read_shape(tiny_config(tmp_path, "influence.parameters=[nothing]"))


@pytest.mark.parametrize("memory", ["fp32", "bf16", "offload"])
def test_directions_take_the_bytes_that_are_forecast(memory: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"influence.target_memory={memory}")
    shape, _ = read_shape(config)
    shapes = {n: tuple(p.shape) for n, p in load_policy("pocket").model.named_parameters()}
    device = torch.device("cpu")
    directions = Directions(shapes, 2, device, config.influence.target_memory)
    weights_2N = half_weights(np.ones(3), "mean")
    halves = DirectionConsumer(shapes, weights_2N, device, config.influence.target_memory)
    tensors = [*directions.values.values(), *halves.sums.values.values()]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert direction_bytes(config, shape, 2) == (0 if memory == "offload" else held)


@pytest.mark.parametrize("memory", ["fp32", "bf16", "offload"])
def test_the_sum_over_parts_takes_the_bytes_that_are_forecast(memory: str, tmp_path: Path) -> None:
    prompts = PromptCounts(SetCount(1, 20.0, 20), {}, {})
    settings = f"influence.target_memory={memory}", "rollouts.max_new_tokens=40"
    for responses, is_held in ((2, False), (32, memory != "offload")):
        config = tiny_config(
            tmp_path,
            *settings,
            f"rollouts.responses={responses}",
            "influence.batch_tokens=200",
        )
        shape, _ = read_shape(config)
        held = 4 * sum(p.numel() for p in load_policy("pocket").model.parameters())
        assert sum_bytes(config, shape, prompts, on_gpu=False) == (held if is_held else 0)
        assert pass_tokens(config, shape, prompts, on_gpu=False) == 200


def test_a_sketch_holds_no_directions(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "influence.sketch=windowed")
    assert direction_bytes(config, read_shape(config)[0], 2) == 0


def test_tied_embeddings_are_counted_once() -> None:
    config = load_config("pocket", [])
    shape, _ = read_shape(config)
    tied = load_policy("pocket").model.config.tie_word_embeddings
    once = shape.vocabulary * shape.hidden
    names = [n for n, _ in load_policy("pocket").model.named_parameters()]
    assert tied == ("lm_head.weight" not in names)
    assert shape.parameters > once
