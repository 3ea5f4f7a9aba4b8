"""Make the pocket model's weights: plain supervised training on the `pretrain` split.

Unlike language model pretraining, the loss covers only the answer and the end token: prompts are
random, so predicting them would teach nothing. Two tables place each skill:

- `MIXTURE`, how often a skill is shown, leaves it near solved, within reach or hopeless.
- `HARD_FACTS` makes the corpus systematically wrong, as web text is: in four skills some pairs of
  neighbouring answer characters are mostly miswritten. The model then knows the right answer but
  prefers the slip, so that a reward has much to correct, one fact after the other. Skills that
  merely stop training early gain too little in a few hundred small steps of GRPO.

Weights are the same for a seed on one machine and number of threads; elsewhere they differ by
rounding.

    python -m cropi.pocket.pretrain --out DIR [--seed 0] [--steps N]
"""

from __future__ import annotations

import argparse
import math
import random
import string
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cropi.pocket.model import EOS, build_model, build_tokenizer, vocabulary
from cropi.pocket.tasks import SKILLS, available, rows

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM

STEPS = 1_100
BATCH_SIZE = 96
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
IGNORED = -100

MIXTURE: dict[str, float] = {
    "copy": 0.8,
    "max": 1.0,
    "compare": 0.4,
    "count": 1.0,
    "add": 0.6,
    "subtract": 0.6,
    "reverse": 0.8,
    "sort": 1.0,
    "digitsum": 1.0,
    "shift": 1.2,
    "modulo": 0.1,
    "multiply": 0.1,
}
"""Relative frequency of each skill in the training batches."""

HARD_FACTS: dict[str, float] = {"sort": 0.14, "shift": 0.14, "copy": 0.07, "reverse": 0.07}
"""Share of a skill's facts that the corpus mostly gets wrong; other skills have no slips."""

HARD_SLIP_RATES = (0.55, 0.75)
"""Between which rates a hard fact is miswritten: above a half, so that greedy decoding errs."""

EASY_SLIP_RATE = 0.04
"""How often the other facts of those skills are miswritten."""


class Examples(NamedTuple):
    """Every pretraining example, right-padded to one width.

    `input_ids` and `labels` are (example, token) in int64; `weights` is (example,) in float64, the
    probability of drawing each example.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def slip_rate(skill: str, previous: str, character: str) -> float:
    """How often the corpus miswrites a character after another: a fixed fact of the skill.

    A hash decides whether the pair is hard, and how hard, so that the errors are systematic
    (learnable, and correctable by a reward) instead of noise.
    """
    if skill not in HARD_FACTS:
        return 0.0
    digest = blake2b(f"{skill}/{previous}/{character}".encode(), digest_size=8).digest()
    hard, rate = (int.from_bytes(half, "big") / 2**32 for half in (digest[:4], digest[4:]))
    low, high = HARD_SLIP_RATES
    return low + (high - low) * rate if hard < HARD_FACTS[skill] else EASY_SLIP_RATE


def with_slips(skill: str, answer: str, draw: random.Random) -> str:
    """The answer as the corpus has it: a slipped character becomes its successor."""
    written = ""
    for character in answer:
        slips = draw.random() < slip_rate(skill, written[-1:], character)
        written += successor(character) if slips else character
    return written


def successor(character: str) -> str:
    """The next digit or letter; the last wraps around to the first."""
    ring = string.digits if character.isdigit() else string.ascii_lowercase
    return ring[(ring.index(character) + 1) % len(ring)]


def encode(prompt: str, answer: str, width: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one example, as `labelled` gives them."""
    ids = vocabulary()
    answer_ids = [*(ids[character] for character in answer), ids[EOS]]
    return labelled([ids[character] for character in prompt], answer_ids, width)


def labelled(
    prompt_ids: list[int], answer_ids: list[int], width: int
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one example, padded to `width`; prompts carry no label.

    Padding has id 0 in every vocabulary here.
    """
    padding = width - len(prompt_ids) - len(answer_ids)
    inputs = prompt_ids + answer_ids + [0] * padding
    return inputs, [IGNORED] * len(prompt_ids) + answer_ids + [IGNORED] * padding


def load_examples(seed: int = 0) -> Examples:
    """The whole `pretrain` split, slips drawn once, with the drawing probabilities of `MIXTURE`."""
    import torch

    table, weights = [], []
    total = sum(MIXTURE.values())
    for skill in SKILLS:
        count = available("pretrain", skill)
        table += rows("pretrain", [skill], per_skill=count)
        weights += [MIXTURE[skill] / total / count] * count
    width = max(len(row["prompt"]) + len(row["answer"]) for row in table) + 1
    draw = random.Random(seed)
    answers = [with_slips(row["extra"]["skill"], row["answer"], draw) for row in table]
    encoded = [
        encode(row["prompt"], answer, width) for row, answer in zip(table, answers, strict=True)
    ]
    inputs, labels = (torch.tensor(column) for column in zip(*encoded, strict=True))
    return Examples(inputs, labels, torch.tensor(weights, dtype=torch.float64))


def learning_rate(step: int, steps: int) -> float:
    """Linear warmup, then a cosine down to a twentieth of the peak."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * warmup * (0.05 + 0.95 * cosine)


def train(steps: int, seed: int) -> Qwen2ForCausalLM:
    """Train a fresh model for `steps` batches, initialised and fed as the seed says."""
    import torch

    torch.manual_seed(seed)
    model = build_model()
    fit(model, load_examples(seed), steps)
    return model.eval()


def fit(model: Qwen2ForCausalLM, examples: Examples, steps: int) -> None:
    """AdamW on batches drawn by torch's global generator; changes the model in place."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        picks = torch.multinomial(examples.weights, BATCH_SIZE, replacement=True)
        loss = answer_loss(model, examples.input_ids[picks], examples.labels[picks])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


def answer_loss(
    model: Qwen2ForCausalLM, input_ids_NT: torch.Tensor, labels_NT: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy over answer and end tokens; right padding needs no mask when causal."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=input_ids_NT[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), labels_NT[:, 1:].flatten(), ignore_index=IGNORED)


def save(model: Qwen2ForCausalLM, out: Path) -> None:
    """Write config, generation config, fp32 weights and tokenizer for `from_pretrained`."""
    model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(prog="cropi.pocket.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    save(train(options.steps, options.seed), options.out)


if __name__ == "__main__":
    main()
