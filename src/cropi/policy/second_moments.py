"""Adam's second moments by parameter name, out of a checkpoint of transformers, TRL or ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cropi.policy.optimizer_file import read_adam
from cropi.policy.param_groups import assign
from cropi.store.files import file_hash


@dataclass(frozen=True, eq=False)
class SecondMoments(Mapping[str, Tensor]):
    """Adam's `exp_avg_sq` by parameter name: fp32, in the parameter's shape, on the CPU.

    A parameter that never had a gradient is zero, after 0 steps. `steps` counts each parameter's
    updates; `source` is the file's hash, `raw` the
    tensors as saved. They are read from the file when asked for.
    """

    raw: Mapping[str, Tensor]
    steps: Mapping[str, int]
    beta2: float
    eps: float
    source: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.raw[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def step(self) -> int:
        """Updates of the parameter that has had the most."""
        return max(self.steps.values())

    def corrected(self, name: str) -> Tensor:
        """v / (1 - beta2^t): the moment without the bias of its start at zero, fp32."""
        steps = self.steps[name]
        return self[name] / (1 - self.beta2**steps) if steps else self[name]


def second_moments(checkpoint: Path, model: nn.Module) -> SecondMoments:
    """Read the second moments in `checkpoint`, a folder with an `optimizer.pt`.

    `model` is the checkpoint's own, for an adapter the PeftModel; names are those of its
    `named_parameters`, of every parameter that the optimizer was given. Raises InputError where
    there is no such file, where another optimizer than a plain Adam wrote it, and where it does
    not verifiably belong to this model.
    """
    saved = read_adam(Path(checkpoint))
    numbers = assign(saved, model)
    parameters = dict(model.named_parameters())
    # Expanded from one number, zeros take no memory.
    raw = {
        name: saved.moments.get(number, torch.zeros(()).expand(parameters[name].shape))
        for name, number in numbers.items()
    }
    steps = {name: saved.steps.get(number, 0) for name, number in numbers.items()}
    return SecondMoments(raw, steps, saved.beta2, saved.eps, file_hash(saved.file))
