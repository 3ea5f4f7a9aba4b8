"""Make the suite's model and prompt files in a folder that git ignores.

    python benchmarks/puzzles/make.py            # minutes on one core; benchmarks/puzzles/made/
    python benchmarks/puzzles/make.py --steps 0  # the prompt files alone

The model is a Qwen3 of 1.6 million parameters: wider than chain's and pocket's, with norms of
queries and keys, and without biases. Its weights are the same for a seed on one machine and number
of threads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropi.pocket.model import EOS, PAD
from puzzles.corpus import CORPUS
from suite.making import Recipe

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM


def build_model(vocabulary: dict[str, int]) -> Qwen3ForCausalLM:
    """A freshly initialised model in fp32; seed torch first."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary[EOS],
        pad_token_id=vocabulary[PAD],
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


RECIPE = Recipe(
    corpus=CORPUS,
    characters="0123456789abcdefghijklmnopqrstuvwxyz%/!&|^.:?=<>()[]{}",
    build_model=build_model,
    steps=1_000,
    folder=Path(__file__).resolve().parent / "made",
)

if __name__ == "__main__":
    RECIPE.make(__doc__)
