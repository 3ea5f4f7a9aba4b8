"""Invariants of the shipped model and its tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from cropi.pocket.model import CHARACTERS, build_config, build_tokenizer, model_dir, vocabulary
from cropi.pocket.tasks import SKILLS, TARGETS, rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir()).eval()


def greedy_accuracy(model: Any, tokenizer: Any, skill: str, count: int) -> float:
    table = rows("test", [skill], per_skill=count)
    batch = tokenizer([row["prompt"] for row in table], return_tensors="pt", padding=True)
    with torch.no_grad():
        sequences = model.generate(**batch, do_sample=False, max_new_tokens=8)
    texts = tokenizer.batch_decode(
        sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = sum(text == row["answer"] for text, row in zip(texts, table, strict=True))
    return right / len(table)


def test_tokenizer_round_trips_every_prompt_and_answer(tokenizer: Any) -> None:
    texts = [
        text for row in rows("test", per_skill=1000) for text in (row["prompt"], row["answer"])
    ]
    encoded = tokenizer(texts)["input_ids"]
    assert all(len(ids) == len(text) for ids, text in zip(encoded, texts, strict=True))
    assert tokenizer.batch_decode(encoded) == texts


def test_every_character_is_one_token_and_nothing_is_added(tokenizer: Any) -> None:
    ids = vocabulary()
    assert tokenizer(CHARACTERS)["input_ids"] == [ids[character] for character in CHARACTERS]
    assert len(tokenizer) == len(ids) == build_config().vocab_size
    assert tokenizer.bos_token_id is None
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_the_saved_tokenizer_agrees_with_the_built_one(tokenizer: Any) -> None:
    texts = [row["prompt"] for row in rows("test", per_skill=20)]
    assert tokenizer(texts)["input_ids"] == build_tokenizer()(texts)["input_ids"]


def test_the_shipped_model_is_small_fp32_and_tied(model: Any) -> None:
    parameters = list(model.parameters())
    assert 8e5 <= sum(parameter.numel() for parameter in parameters) <= 1e6
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 1)


@pytest.mark.parametrize("skill", TARGETS)
def test_the_shipped_model_half_solves_the_targets(model: Any, tokenizer: Any, skill: str) -> None:
    assert 0.30 <= greedy_accuracy(model, tokenizer, skill, 300) <= 0.75


def test_some_skills_are_solved_and_some_hopeless(model: Any, tokenizer: Any) -> None:
    accuracy = {skill: greedy_accuracy(model, tokenizer, skill, 60) for skill in SKILLS}
    assert max(accuracy.values()) > 0.85
    assert min(accuracy.values()) < 0.05


def test_padding_does_not_change_what_the_model_says(model: Any, tokenizer: Any) -> None:
    prompts = ["a34+58=", "a971+141="]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    alone = tokenizer(prompts[0], return_tensors="pt")
    with torch.no_grad():
        padded, plain = model(**batch).logits[0, -1], model(**alone).logits[0, -1]
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=1e-4)
