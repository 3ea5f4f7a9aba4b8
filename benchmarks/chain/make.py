"""Make the suite's model and prompt files in a folder that git ignores.

    python benchmarks/chain/make.py            # minutes on one core; benchmarks/chain/made/
    python benchmarks/chain/make.py --steps 0  # the prompt files alone

The model is a Qwen2 of 0.6 million parameters, shallower than pocket's. Its weights are the same
for a seed on one machine and number of threads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain.corpus import CORPUS
from cropi.pocket.model import EOS, PAD
from suite.making import Recipe

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM


def build_model(vocabulary: dict[str, int]) -> Qwen2ForCausalLM:
    """A freshly initialised model in fp32; seed torch first."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary[EOS],
        pad_token_id=vocabulary[PAD],
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


RECIPE = Recipe(
    corpus=CORPUS,
    characters="0123456789abcdefghijklmnopqrstuvwxyz+-*=<>,:;Ġ",
    build_model=build_model,
    steps=900,
    folder=Path(__file__).resolve().parent / "made",
)

if __name__ == "__main__":
    RECIPE.make(__doc__)
