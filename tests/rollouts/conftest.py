"""Tiny random policies that run in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from cropi.pocket.model import build_tokenizer
from cropi.policy.loading import Policy, load_policy

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    # Wide weights make peaked distributions, in which every warper changes something.
    "initializer_range": 0.25,
}
KINDS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of a kind, once a session."""

    def save(kind: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / kind
        if not folder.exists():
            config, model = KINDS[kind]
            torch.manual_seed(0)
            model(config(**SIZES)).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session", params=["qwen2", "llama"])
def any_policy(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Policy:
    """A tiny policy of each kind."""
    return load_policy(checkpoint(request.param))


@pytest.fixture(scope="session")
def policy(checkpoint: Callable[[str], Path]) -> Policy:
    """A tiny Qwen2 policy."""
    return load_policy(checkpoint("qwen2"))
