"""Is the cost linear in tokens, and flat in prompts? On a model small enough to ask.

The price of a prompt at 1,000, 10,000 and 100,000 prompts through the whole scorer, and of a token
at growing response lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from cropi.schema import RolloutGroup
from gradient_costs import ours
from gradient_costs.rollouts import Sizes, synthetic

PROMPTS = (1_000, 10_000, 100_000)
LENGTHS = (32, 64, 128, 256)
DISTINCT = 500


def tiny_model(device: str) -> Any:
    """A Qwen2 of two layers of width 32, with room for long responses."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval().to(device)


def scaling(device: str, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Seconds per prompt by the pool's size, and seconds per token by the responses' length."""
    model = tiny_model(device)
    scorer = ours.exact_scorer(model, share_prefix=True)
    target = {"target": synthetic(model, 8, Sizes(12, 4, 8), seed=1)}
    base = synthetic(model, DISTINCT, Sizes(12, 4, 8), seed=0)
    scorer.score(base[:20], target)
    by_prompts = {}
    for count in PROMPTS:
        seconds = score_seconds(scorer, repeated(base, count), target)
        by_prompts[str(count)] = seconds / count
        say(f"{count:,} prompts: {1e6 * seconds / count:.0f} us a prompt")
    by_length = {}
    for length in LENGTHS:
        groups = synthetic(model, 64, Sizes(12, 4, length), seed=2)
        tokens = sum(len(g.prompt_ids) + g.tokens for g in groups)
        score_seconds(scorer, groups, target)
        seconds = sorted(score_seconds(scorer, groups, target) for _ in range(3))[1]
        by_length[str(length)] = seconds / tokens
        say(f"responses of {length}: {1e6 * seconds / tokens:.1f} us a token")
    return {"seconds_per_prompt": by_prompts, "seconds_per_token": by_length}


def repeated(base: list[RolloutGroup], count: int) -> list[RolloutGroup]:
    """`count` groups with ids of their own, of a few hundred different ones."""
    return [replace(base[n % len(base)], prompt_id=f"p{n}") for n in range(count)]


def score_seconds(scorer: Any, pool: list[RolloutGroup], targets: Any) -> float:
    """Seconds of one scoring, targets included."""
    start = time.perf_counter()
    scorer.score(pool, targets)
    return time.perf_counter() - start
