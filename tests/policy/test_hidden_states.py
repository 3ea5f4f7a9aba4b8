"""Features of prompts: the policy's hidden states, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from cropi.errors import InputError
from cropi.policy import hidden_states
from cropi.policy.hidden_states import MOST_DIMENSIONS, prompt_hidden_states
from cropi.schema import RolloutGroup
from support.tiny_models import tiny_model


def groups(count: int, longest: int = 9) -> list[RolloutGroup]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, longest + 1, count)
    rows = [draw.integers(3, 60, length).astype(np.int32) for length in lengths]
    return [RolloutGroup(f"p{n}", row, []) for n, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied", "gpt2", "gemma3", "gpt-neox"])
def test_they_are_the_mean_and_the_last_state_of_each_layer(name: str) -> None:
    model, pool = tiny_model(name), groups(7)
    rows = []
    for group in pool:
        with torch.no_grad():
            ids = torch.as_tensor(group.prompt_ids, dtype=torch.long)[None]
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append([torch.cat([s[0].mean(0), s[0, -1]]).double().numpy() for s in states[1:]])
    plain = np.array(rows).transpose(1, 0, 2)
    plain = (plain - plain.mean(1, keepdims=True)) / plain.std(1, keepdims=True)
    states = prompt_hidden_states(model, pool)
    assert states == pytest.approx(plain / np.sqrt(plain.shape[2]), abs=1e-4)


def test_adapters_are_part_of_the_policy() -> None:
    model, pool = tiny_model("qwen2-tied"), groups(6)
    plain = prompt_hidden_states(model, pool)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert prompt_hidden_states(adapted.eval(), pool) == pytest.approx(plain, abs=1e-6)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert np.abs(prompt_hidden_states(adapted.eval(), pool) - plain).max() > 0.01


def test_states_that_are_not_finite_are_refused_by_the_prompts_name() -> None:
    model, pool = tiny_model("qwen2-tied"), groups(6)
    token = int(pool[2].prompt_ids[0])
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(InputError, match=r"at prompt 'p\d+' are not finite"):
        prompt_hidden_states(model, pool)


def test_they_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool = tiny_model("qwen2-tied"), groups(20)
    together = prompt_hidden_states(model, pool)
    monkeypatch.setattr(hidden_states, "BATCH_TOKENS", 12)
    assert prompt_hidden_states(model, pool) == pytest.approx(together, abs=1e-4)
    back = prompt_hidden_states(model, pool[::-1])[:, ::-1]
    assert back == pytest.approx(together, abs=1e-4)


def test_wide_states_are_projected_and_keep_their_inner_products() -> None:
    draw = np.random.default_rng(1)
    wide = draw.normal(size=(60, 4 * MOST_DIMENSIONS)) + 3 * draw.normal(size=(60, 1))
    narrow = hidden_states._Scale.of(wide).scaled(wide)
    full = (wide - wide.mean(0)) / wide.std(0) / np.sqrt(wide.shape[1])
    assert narrow.shape == (60, MOST_DIMENSIONS)
    assert np.corrcoef((narrow @ narrow.T).ravel(), (full @ full.T).ravel())[0, 1] > 0.99


def test_a_feature_that_never_varies_is_zero() -> None:
    same = np.ones((5, 3))
    assert not hidden_states._Scale.of(same).scaled(same).any()


def test_a_part_of_many_prompts_says_how_all_are_standardised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, pool = tiny_model("qwen2-tied"), groups(60)
    by_all = prompt_hidden_states(model, pool)
    monkeypatch.setattr(hidden_states, "SCALED_BY", 40)
    by_some = prompt_hidden_states(model, pool)
    assert by_some.dtype == np.float32
    for all_PF, some_PF in zip(by_all, by_some, strict=True):
        scale_F = some_PF.std(0) / all_PF.std(0)
        offset_F = some_PF.mean(0) - scale_F * all_PF.mean(0)
        assert some_PF == pytest.approx(all_PF * scale_F + offset_F, abs=1e-4)
        assert 0.7 < np.median(scale_F) < 1.4
