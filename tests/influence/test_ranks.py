"""Several processes with shards of the weights give the scores of one process."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.ranks import Ranks
from cropi.influence.cosines import Influence
from cropi.influence.preconditioner import Preconditioner
from cropi.influence.scorer import Scorer
from cropi.policy.loading import load_model
from cropi.policy.optimizer_state import SecondMoments
from cropi.policy.splitting import SplitKind
from cropi.rollouts import write_rollouts
from cropi.sketches import make_sketch
from cropi.store.tables import read_scores
from support.ranks import run_ranks
from support.tiny_models import FAST, mixed_groups, tiny_model


@dataclass(frozen=True)
class Case:
    """One way to score."""

    name: str
    architecture: str = "qwen3"
    lora: bool = False
    adam: bool = False
    sketch: str | None = None
    per_response: bool = False
    loaded: bool = False
    split: SplitKind = "fsdp"
    scorer: dict[str, Any] = field(default_factory=dict)
    extractor: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES = [Case(name, name) for name in FAST]
SETTINGS = [
    Case("loaded-tied", "qwen2-tied", loaded=True),
    Case("loaded-untied", loaded=True),
    Case("loaded-without-a-plan", "gpt2", loaded=True),
    Case("without-rules", "opt", loaded=True, per_response=True),
    Case("lora", lora=True),
    Case("adam", adam=True),
    Case("single-responses", per_response=True),
    Case("windowed-sketch", sketch="windowed"),
    Case("sketch-of-factors", sketch="kronecker"),
    Case("fitted-sketch", sketch="adaptive"),
    Case("unit-mean", scorer={"target": "unit_mean"}),
    Case("whitened", scorer={"metric": "whitened"}),
    Case("offloaded", scorer={"target_memory": "offload"}),
    Case("rows", extractor={"share_prefix": False, "batch_tokens": 60}),
    Case("checkpointed", extractor={"gradient_checkpointing": True}),
    Case("some-parameters", extractor={"patterns": ["*.mlp.*", "*norm*"]}),
    Case("in-parts", per_response=True, extractor={"batch_tokens": 14}),
    Case("in-parts-of-factors", sketch="kronecker", extractor={"batch_tokens": 14}),
    Case("one-batch", extractor={"batch_tokens": 10_000}),
]

TENSOR = [
    Case("tensor-qwen2", "qwen2-tied", loaded=True, split="tensor", per_response=True),
    Case("tensor-qwen3", "qwen3", loaded=True, split="tensor", adam=True),
    Case("tensor-llama", "llama-untied", loaded=True, split="tensor"),
    Case(
        "tensor-in-parts",
        "llama-untied",
        loaded=True,
        split="tensor",
        extractor={"batch_tokens": 14, "gradient_checkpointing": True},
        scorer={"target": "unit_mean"},
    ),
]

FOUR = [case for case in SETTINGS if case.name in ("lora", "windowed-sketch", "loaded-tied")]


def sharded(model: nn.Module) -> nn.Module:
    """The model under FSDP2: its embeddings unless they are tied, each layer, and the rest."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings.weight is not head.weight:
        fully_shard(embeddings)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module)
    fully_shard(model)
    return model


def adapted(model: nn.Module) -> nn.Module:
    """The model with adapters that have been trained, as random numbers go."""
    import peft

    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def random_moments(shapes: dict[str, tuple[int, ...]]) -> SecondMoments:
    generator = torch.Generator().manual_seed(1)
    raw = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return SecondMoments(raw, dict.fromkeys(raw, 5), 0.999, 1e-8, "random")


def score(case: Case, folder: Path | None = None) -> Influence:
    """The scores of one process, or, with the folder of saved models, of one of several."""
    model = tiny_model(case.architecture)
    if folder is not None:
        model = (
            load_model(folder / case.architecture, shards=Ranks.joined().size, split=case.split)
            if case.loaded
            else sharded(model)
        )
    if case.lora:
        torch.manual_seed(0)
        model = adapted(model)
    settings = {"batch_tokens": 200, **case.extractor}
    extractor = GradientExtractor(model, ObjectiveConfig(), ranks=Ranks.of(model), **settings)
    shapes = extractor.whole_shapes
    sketch = make_sketch(case.sketch, shapes, 0) if case.sketch else None
    adam = Preconditioner(random_moments(shapes)) if case.adam else None
    scorer = Scorer(extractor, sketch, preconditioner=adam, **case.scorer)
    targets = {"algebra": mixed_groups(4, seed=2), "words": mixed_groups(2, seed=3)}
    return scorer.score(mixed_groups(7, seed=1), targets, case.per_response)


def scores_of_rank(cases: list[Case], folder: Path) -> dict[str, Influence]:
    with warnings.catch_warnings(record=True):
        return {case.name: score(case, folder) for case in cases}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("models")
    for case in (*SETTINGS, *TENSOR):
        if case.loaded:
            tiny_model(case.architecture).save_pretrained(index / case.architecture)
    return index


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Influence]]:
    return run_ranks(2, scores_of_rank, [*ARCHITECTURES, *SETTINGS, *TENSOR], folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Influence]]:
    return run_ranks(4, scores_of_rank, FOUR, folder)


def assert_same_scores(influence: Influence, expected: Influence) -> None:
    """All that is reported of the prompts and of the targets."""
    actual, one = influence.estimate, expected.estimate
    assert (actual.prompt_ids, actual.status) == (one.prompt_ids, one.status)
    assert actual.identity == one.identity
    assert influence.tokens == expected.tokens
    for values in ("norms", "current_reward", "effective_share"):
        np.testing.assert_allclose(getattr(actual, values), getattr(one, values), rtol=2e-6)
    for name, cosines in one.mean.items():
        np.testing.assert_allclose(actual.mean[name], cosines, atol=1e-6, rtol=0)
        errors = one.standard_error[name]
        np.testing.assert_allclose(actual.standard_error[name], errors, atol=1e-5)
    for name, reliability in expected.reliability.items():
        assert influence.reliability[name].split_half == pytest.approx(
            reliability.split_half, abs=1e-6
        )


@pytest.mark.parametrize("case", [*ARCHITECTURES, *SETTINGS, *TENSOR], ids=lambda case: case.name)
def test_two_processes_score_as_one(two: list[dict[str, Influence]], case: Case) -> None:
    expected = score(case)
    for scores in two:
        assert_same_scores(scores[case.name], expected)


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.name)
def test_four_processes_score_as_one(four: list[dict[str, Influence]], case: Case) -> None:
    expected = score(case)
    for scores in four:
        assert_same_scores(scores[case.name], expected)


def faults_of_rank(folder: Path) -> dict[str, str]:
    """What each fault is refused with, by its name."""
    tensor = partial(load_model, shards=2, split="tensor")
    case = Case("tensor", loaded=True, split="tensor")
    faults = {
        "lost": score_and_lose_a_layer,
        "split": score_split_layers,
        "plan": partial(tensor, folder / "gpt2"),
        "heads": partial(tensor, folder / "one-head"),
        "sketch": partial(score, replace(case, sketch="windowed"), folder),
        "whitened": partial(score, replace(case, scorer={"metric": "whitened"}), folder),
        "experts": partial(score, replace(case, architecture="mixtral"), folder),
    }
    sentences = {}
    for name, fault in faults.items():
        with pytest.raises(InputError) as refusal:
            fault()
        sentences[name] = str(refusal.value)
    return sentences


def held_and_whole(folder: Path) -> tuple[int, int]:
    """How many coordinates a tensor parallel rank answers for, and how many there are."""
    model = load_model(folder, shards=2, split="tensor")
    extractor = GradientExtractor(model, ObjectiveConfig())
    shapes = extractor.shapes, extractor.whole_shapes
    held, whole = (sum(math.prod(shape) for shape in each.values()) for each in shapes)
    return held, whole


def score_and_lose_a_layer() -> None:
    """From the second pass on, one layer is skipped, so that no gradient of its weights comes."""
    model = sharded(tiny_model("qwen3"))
    extractor = GradientExtractor(model, ObjectiveConfig(), 100, ranks=Ranks.of(model))
    extractor.run(mixed_groups(4), [])
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    extractor.run(mixed_groups(4), [])


def score_split_layers() -> None:
    """A tensor parallel model, whose ranks hold and use a part of a layer."""
    model = tiny_model("qwen3")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    weight = distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)])
    model.lm_head.weight = nn.Parameter(weight)
    Ranks.of(model)


def test_a_gradient_that_is_lost_or_cannot_be_taken_is_refused(tmp_path: Path) -> None:
    for name in ("gpt2", "qwen3", "mixtral"):
        tiny_model(name).save_pretrained(tmp_path / name)
    config = tiny_model("qwen3").config
    config.num_key_value_heads = 1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "one-head")
    for sentences in run_ranks(2, faults_of_rank, tmp_path):
        assert "model.layers.1." in sentences["lost"]
        assert "had no gradient in a batch" in sentences["lost"]
        assert "split='tensor'" in sentences["split"]
        assert "no tensor parallel plan for GPT2LMHeadModel" in sentences["plan"]
        assert "num_key_value_heads 1" in sentences["heads"]
        assert sentences["sketch"] == sentences["whitened"]
        assert "a sketch needs whole parameters" in sentences["sketch"]
        assert "split it with fsdp" in sentences["experts"]


def test_ranks_of_a_tensor_parallel_model_divide_its_parameters(folder: Path) -> None:
    (first, whole), (second, _) = run_ranks(2, held_and_whole, folder / "qwen3")
    assert first + second == whole
    assert max(first, second) < 0.6 * whole


def command_of_rank(folder: str, out: str) -> None:
    from cropi.cli import app

    given = ["--rollouts", f"{folder}/pool.parquet", "--target", f"val={folder}/val.parquet"]
    app(["score", "--model", f"{folder}/model", *given, "--out", out], standalone_mode=False)


def test_the_command_under_torchrun_writes_the_scores_of_one_process(tmp_path: Path) -> None:
    tiny_model("qwen2-tied").save_pretrained(tmp_path / "model")
    for name, seed in {"pool": 1, "val": 2}.items():
        write_rollouts(tmp_path / f"{name}.parquet", mixed_groups(7, seed))
    together, alone = tmp_path / "together.parquet", tmp_path / "alone.parquet"
    run_ranks(2, command_of_rank, str(tmp_path), str(together), join=False)
    assert "RANK" not in os.environ
    command_of_rank(str(tmp_path), str(alone))
    actual, expected = read_scores(together), read_scores(alone)
    assert actual.prompt_ids == expected.prompt_ids
    assert actual.status == expected.status
    np.testing.assert_allclose(actual.mean["val"], expected.mean["val"], atol=1e-6)
