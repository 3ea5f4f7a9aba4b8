"""Make a suite's model and prompt files in a folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropi.pocket.model import EOS, PAD, build_tokenizer
from cropi.pocket.pretrain import Examples, fit, labelled
from cropi.pocket.tasks import SPLIT_SHARES
from suite.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """What a suite is made from.

    `characters` are those of all prompts and chains; byte-level tokenizers write a space as `Ġ`.
    `build_model` makes a freshly initialised model in fp32 for a vocabulary, and `steps` are those
    of its training.
    """

    corpus: Corpus
    characters: str
    build_model: Callable[[dict[str, int]], PreTrainedModel]
    steps: int
    folder: Path

    def vocabulary(self) -> dict[str, int]:
        """Token ids: padding, end of sequence, then one for each character."""
        return {token: place for place, token in enumerate((PAD, EOS, *self.characters))}

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a prompt or a chain."""
        ids = self.vocabulary()
        return [ids[character] for character in text.replace(" ", "Ġ")]

    def load_examples(self, seed: int) -> Examples:
        """The whole corpus as tensors."""
        import torch

        prompts, chains, weights = zip(*self.corpus.examples(seed), strict=True)
        width = max(len(p) + len(c) for p, c in zip(prompts, chains, strict=True)) + 1
        end = [self.vocabulary()[EOS]]
        pairs = [
            labelled(self.token_ids(prompt), self.token_ids(chain) + end, width)
            for prompt, chain in zip(prompts, chains, strict=True)
        ]
        inputs, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
        return Examples(inputs, labels, torch.tensor(weights, dtype=torch.float64))

    def make_model(self, out: Path, steps: int, seed: int) -> None:
        """Train the model and write it for `from_pretrained`."""
        import torch

        torch.manual_seed(seed)
        model = self.build_model(self.vocabulary())
        fit(model, self.load_examples(seed), steps)
        model.eval().save_pretrained(out)
        build_tokenizer(self.vocabulary()).save_pretrained(out)

    def make_prompts(self, out: Path) -> None:
        """Write `SPLIT/SKILL.jsonl` for the splits that runs use."""
        for split in SPLIT_SHARES:
            for skill in self.corpus.suite.skills if split != "pretrain" else ():
                path = out / split / f"{skill}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = self.corpus.suite.rows(split, skill)
                path.write_text("".join(map(_line, rows)), encoding="utf-8")

    def make(self, description: str | None, arguments: list[str] | None = None) -> None:
        """Command line entry point of a suite's `make.py`."""
        parser = argparse.ArgumentParser(prog="make.py", description=description)
        parser.add_argument("--out", type=Path, default=self.folder, help="the folder to write")
        parser.add_argument(
            "--steps", type=int, default=self.steps, help="of training; 0: no model"
        )
        parser.add_argument("--seed", type=int, default=0)
        options = parser.parse_args(arguments)
        self.make_prompts(options.out)
        if options.steps:
            self.make_model(options.out / "model", options.steps, options.seed)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
