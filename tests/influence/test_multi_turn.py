"""Rollouts with tool calls: what the tool answered conditions the policy, and is never its own."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cropi.config import InfluenceConfig, ObjectiveConfig
from cropi.errors import InputError
from cropi.influence.features.extraction import write_features
from cropi.influence.setup import make_scorer, score
from cropi.rollouts import read_rollouts, write_rollouts
from cropi.rollouts.staleness import measure_staleness
from cropi.schema import Response, RolloutGroup, Sampling
from cropi.sketches.settings import SketchChoice
from support.chat_model import chat_model
from support.oracle import flatten, oracle_gradient

ATTEMPTS = {
    "1+2": [("3", "It is 3.", 1.0), ("3", "It is 4.", 0.0), ("error", "Sorry.", 0.0)],
    "2+5": [("7", "7", 1.0), ("7", "It is 7, I think.", 1.0), ("52", "It is 52.", 0.0)],
    "9+9": [("18", "18", 1.0), ("", "I do not know", 0.0)],
}
"""For each question what a tool answered, what the policy then said, and the reward."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    return model


@pytest.fixture(scope="module")
def groups(folder: Path) -> list[RolloutGroup]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [conversations(tokenizer, n, q) for n, q in enumerate(ATTEMPTS)]


def conversations(tokenizer: PreTrainedTokenizerBase, number: int, question: str) -> RolloutGroup:
    """Two turns of the policy with a tool's answer between them, as one response each."""
    rng = np.random.default_rng(number)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def response(answer: str, remark: str, reward: float) -> Response:
        call, seen, close = f"(add {question})</s>", f"<s>tool:{answer}</s><s>assistant:", "</s>"
        parts = [ids(call), ids(seen), ids(remark + close)]
        mask = np.repeat(np.array([1, 0, 1], np.uint8), [len(part) for part in parts])
        logprobs = np.where(mask, rng.normal(-4.5, 0.5, len(mask)), np.nan).astype(np.float32)
        tokens = np.array([token for part in parts for token in part], np.int32)
        return Response(tokens, logprobs, reward=reward, loss_mask=mask)

    prompt = np.array(ids(f"<s>user:{question}</s><s>assistant:"), np.int32)
    responses = [response(*attempt) for attempt in ATTEMPTS[question]]
    return RolloutGroup(question, prompt, responses, Sampling(temperature=0.8))


def oracle_cosines(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> list[float]:
    direction = torch.stack([flatten(oracle_gradient(model, g)) for g in target]).mean(0)
    gradients = torch.stack([flatten(oracle_gradient(model, g)) for g in pool])
    return torch.cosine_similarity(gradients, direction[None], dim=1).tolist()


@pytest.mark.parametrize("share_prefix", [True, False])
def test_influence_of_tool_conversations_equals_the_oracle(
    model: nn.Module, groups: list[RolloutGroup], share_prefix: bool
) -> None:
    settings = InfluenceConfig(share_prefix=share_prefix)
    estimate = score(model, groups, {"v": groups[1:]}, settings).estimate
    expected = oracle_cosines(model, groups, groups[1:])
    assert estimate.mean["v"].tolist() == pytest.approx(expected, abs=1e-5)
    spoken = [sum(int(r.loss_mask.sum()) for r in group.responses) for group in groups]
    assert estimate.tokens.tolist() == spoken


def test_influence_over_adapters_equals_the_oracle(
    model: nn.Module, groups: list[RolloutGroup]
) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    estimate = score(adapted, groups, {"v": groups[:2]}).estimate
    expected = oracle_cosines(adapted, groups, groups[:2])
    assert estimate.mean["v"].tolist() == pytest.approx(expected, abs=1e-5)


SKETCHES = {
    "sparse": {"dim": 1 << 14},
    "windowed": {"dim": 1 << 14},
    "kronecker": {"dim": 1 << 14},
    "adaptive": {"dim": 1 << 10},
}


@pytest.mark.parametrize("name", SKETCHES)
def test_sketches_see_the_masked_gradients(
    model: nn.Module, groups: list[RolloutGroup], name: str
) -> None:
    settings = InfluenceConfig(sketch=SketchChoice.of(name, **SKETCHES[name]))
    estimate = score(model, groups, {"v": groups[1:]}, settings).estimate
    expected = oracle_cosines(model, groups, groups[1:])
    assert estimate.mean["v"].tolist() == pytest.approx(expected, abs=0.05)
    norms = [float(flatten(oracle_gradient(model, g)).norm()) for g in groups]
    # Kronecker sketches never see the dense gradient: their norms are estimates too.
    rounding = 0.1 if name == "kronecker" else 1e-5
    assert estimate.norms.tolist() == pytest.approx(norms, rel=rounding)


def test_scores_from_a_file_are_those_from_memory(
    model: nn.Module, groups: list[RolloutGroup], tmp_path: Path
) -> None:
    write_rollouts(tmp_path / "r.parquet", groups)
    stored = read_rollouts(tmp_path / "r.parquet")
    one, other = (score(model, pool, {"v": groups[1:]}).estimate for pool in (groups, stored))
    assert np.array_equal(one.mean["v"], other.mean["v"])


def test_a_conversation_without_a_word_of_the_policys_is_counted_and_changes_nothing(
    model: nn.Module, groups: list[RolloutGroup]
) -> None:
    silent = dataclasses.replace(groups[0].responses[0], reward=0.3)
    silent.loss_mask = np.zeros(len(silent.ids), np.uint8)
    first = dataclasses.replace(groups[0], responses=[*groups[0].responses, silent])
    plain = score(model, groups, {"v": groups[1:]})
    with_silent = score(model, [first, *groups[1:]], {"v": groups[1:]})
    assert np.array_equal(plain.estimate.mean["v"], with_silent.estimate.mean["v"])
    assert with_silent.estimate.group_size.tolist() == [3, 3, 2]
    assert any("the pool: 1 of 9 judged responses left out" in n for n in with_silent.notes)
    assert not any("left out" in note for note in plain.notes)


RATIOS = {
    "token": ObjectiveConfig(),
    "sequence": ObjectiveConfig(ratio="sequence"),
    "reinforce, weighted rewards": ObjectiveConfig(ratio="none", self_normalised=True),
}


@pytest.mark.parametrize("objective", RATIOS.values(), ids=RATIOS)
def test_raw_log_probs_of_another_temperature_make_no_ratio(
    model: nn.Module, groups: list[RolloutGroup], objective: ObjectiveConfig, tmp_path: Path
) -> None:
    raw = [dataclasses.replace(group, logprob_mode="raw") for group in groups]
    settings = InfluenceConfig(objective=objective, sketch=SketchChoice.of("sparse", dim=64))
    message = r"3 prompts, first 1\+2, are raw, .* temperature 0.8, .*objective.ratio=none"
    with pytest.raises(InputError, match=f"the pool: .*{message}"):
        score(model, raw, {"v": groups}, settings)
    with pytest.raises(InputError, match=f"validation set v: .*{message}"):
        score(model, groups, {"v": raw}, settings)
    scorer = make_scorer(model, settings, 0)
    with pytest.raises(InputError, match=message):
        write_features(scorer.extractor, scorer.sketch, raw, tmp_path / "f", rollouts="")
    with pytest.raises(InputError, match=message):
        measure_staleness(raw, [[r.logprobs for r in group.usable] for group in raw])


def test_without_ratios_the_mode_of_log_probs_does_not_matter(
    model: nn.Module, groups: list[RolloutGroup]
) -> None:
    settings = InfluenceConfig(objective=ObjectiveConfig(ratio="none"))
    plain = score(model, groups, {"v": groups[1:]}, settings)
    for mode in ("raw", "before_top_p", "recomputed"):
        other = [dataclasses.replace(group, logprob_mode=mode) for group in groups]
        influence = score(model, other, {"v": groups[1:]}, settings)
        assert np.array_equal(influence.estimate.mean["v"], plain.estimate.mean["v"])
        assert not any("log-probs" in note for note in influence.notes)


@pytest.mark.parametrize("mode", ["before_top_p", "recomputed", "raw", "processed"])
def test_log_probs_from_before_the_cut_are_told(
    model: nn.Module, groups: list[RolloutGroup], mode: str
) -> None:
    def sampled(sampling: Sampling) -> list[str]:
        pool = [dataclasses.replace(g, logprob_mode=mode, sampling=sampling) for g in groups]
        return [n for n in score(model, pool, {"v": groups}).notes if "too high" in n]

    assert len(sampled(Sampling(top_p=0.9))) == len(sampled(Sampling(top_k=5)))
    assert len(sampled(Sampling(top_p=0.9))) == (mode != "processed")
    assert sampled(Sampling()) == []
