"""Make the suite's model and prompt files in a folder that git ignores.

    python benchmarks/chain/make.py            # minutes on one core; benchmarks/chain/made/
    python benchmarks/chain/make.py --steps 0  # the prompt files alone

The model is a Qwen2 of 0.6 million parameters, shallower than pocket's. Its weights are the same
for a seed on one machine and number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain.corpus import examples
from chain.tasks import SKILLS, rows
from cropi.pocket.model import EOS, PAD, build_tokenizer
from cropi.pocket.pretrain import Examples, fit, labelled
from cropi.pocket.tasks import SPLIT_SHARES

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

FOLDER = Path(__file__).resolve().parent / "made"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz+-*=<>,:;Ġ"
"""Every character of prompts and chains; byte-level tokenizers write a space as the last one."""
STEPS = 900


def vocabulary() -> dict[str, int]:
    """Token ids: padding, end of sequence, then one for each character."""
    return {token: place for place, token in enumerate((PAD, EOS, *CHARACTERS))}


def token_ids(text: str) -> list[int]:
    """Token ids of a prompt or a chain."""
    ids = vocabulary()
    return [ids[character] for character in text.replace(" ", "Ġ")]


def build_model() -> Qwen2ForCausalLM:
    """A freshly initialised model in fp32; seed torch first."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = vocabulary()
    config = Qwen2Config(
        vocab_size=len(ids),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def load_examples(seed: int) -> Examples:
    """The whole corpus as tensors."""
    import torch

    prompts, chains, weights = zip(*examples(seed), strict=True)
    width = max(len(p) + len(c) for p, c in zip(prompts, chains, strict=True)) + 1
    end = [vocabulary()[EOS]]
    pairs = [
        labelled(token_ids(prompt), token_ids(chain) + end, width)
        for prompt, chain in zip(prompts, chains, strict=True)
    ]
    inputs, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return Examples(inputs, labels, torch.tensor(weights, dtype=torch.float64))


def make_model(out: Path, steps: int, seed: int) -> None:
    """Train the model and write it for `from_pretrained`."""
    import torch

    torch.manual_seed(seed)
    model = build_model()
    fit(model, load_examples(seed), steps)
    model.eval().save_pretrained(out)
    build_tokenizer(vocabulary()).save_pretrained(out)


def make_prompts(out: Path) -> None:
    """Write `SPLIT/SKILL.jsonl` for the splits that runs use."""
    for split in SPLIT_SHARES:
        for skill in SKILLS if split != "pretrain" else ():
            path = out / split / f"{skill}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(map(_line, rows(split, skill))), encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(prog="make.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training; 0: no model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    make_prompts(options.out)
    if options.steps:
        make_model(options.out / "model", options.steps, options.seed)


if __name__ == "__main__":
    main()
