"""Training sees exactly the tokens that rollouts saw, whatever kind of prompt it is."""

from __future__ import annotations

from pathlib import Path

import cropi
from cropi.config import TrainingConfig
from cropi.policy.loading import load_policy
from cropi.prompts import encode
from cropi.schema import Prompt
from support.chat_model import chat_model

USER = {"role": "user", "content": "2+2?"}
PROMPTS = [
    Prompt("text", "4", "s", prompt="2+2="),
    Prompt("chat", "4", "s", messages=(USER,)),
    Prompt("begun", "4", "s", messages=(USER, {"role": "assistant", "content": "It"})),
    Prompt("tools", "4", "s", messages=(USER,), tools=({"function": {"name": "add"}},)),
]


def test_text_chats_begun_answers_and_tools_are_trained_on_as_they_were_encoded(
    tmp_path: Path,
) -> None:
    model = chat_model(tmp_path / "model")
    settings = TrainingConfig(prompts_per_step=2, responses=2, max_new_tokens=2)
    ids = [prompt.prompt_id for prompt in PROMPTS]
    out = tmp_path / "out"
    outcome = cropi.train(model, PROMPTS, ids, out, settings, steps=2, verifier="exact")
    tokenizer = load_policy(model).tokenizer
    trained = {group.prompt_id: group.prompt_ids.tolist() for group in outcome.rollouts}
    assert trained == {p.prompt_id: encode(tokenizer, p) for p in PROMPTS}
