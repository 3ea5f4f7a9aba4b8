"""Training that diverges ends with one sentence: the step, and what to lower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cropi.errors import InputError

if TYPE_CHECKING:
    from cropi.training.process_group import ProcessGroup

LARGEST_WEIGHT = 1e6
"""Weights of trained policies are below 1e3; larger ones leave nothing of the policy."""


def require_converging(
    model: Any, step: int, key: str, learning_rate: float, group: ProcessGroup | None = None
) -> None:
    """Raise InputError if a trained weight is NaN, infinite or absurd after step `step`.

    `key` is the setting of the learning rate. Every process of `group` looks at its own part.
    """
    largest = [largest_weight(model)]
    if group is not None:
        largest = group.together(lambda: largest_weight(model))
    # Written so that NaN is a divergence.
    for each in largest:
        if not each <= LARGEST_WEIGHT:
            raise diverged(step, f"the largest weight is {each:.3g}", key, learning_rate)


def largest_weight(model: Any) -> float:
    """The largest absolute value of the trained weights that this process holds."""
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    weights = [getattr(p, "_local_tensor", p) for p in trained]  # a DTensor's part
    weights = [p for p in weights if p.numel()]
    if not weights:
        return 0.0
    norms = torch._foreach_norm(weights, math.inf)
    return float(torch.stack([norm.float().cpu() for norm in norms]).max())


@contextmanager
def reraise_divergence(
    steps_done: Callable[[], int], key: str, learning_rate: float
) -> Iterator[None]:
    """Convert torch's refusal to sample from NaN or infinity into an InputError with the step."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        problem = "the policy's probabilities are NaN or infinite"
        raise diverged(steps_done() + 1, problem, key, learning_rate) from error


def diverged(step: int, problem: str, key: str, learning_rate: float) -> InputError:
    """The error for a training that diverged, with the step and the setting to lower."""
    return InputError(
        f"training diverged at step {step}: {problem}; lower {key} (now {learning_rate:g})"
    )
