"""Training that diverges ends with one sentence: the step, and what to lower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cropi.errors import InputError

LARGEST_WEIGHT = 1e6
"""Weights of trained policies are below 1e3; larger ones leave nothing of the policy."""


def require_converging(model: Any, step: int, key: str, learning_rate: float) -> None:
    """Raise InputError if a trained weight is NaN, infinite or absurd after step `step`.

    `key` is the setting of the learning rate.
    """
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    if weights:
        norms = torch._foreach_norm(weights, math.inf)
        largest = float(torch.stack([norm.float().cpu() for norm in norms]).max())
        # Written so that NaN is a divergence.
        if not largest <= LARGEST_WEIGHT:
            raise diverged(step, f"the largest weight is {largest:.3g}", key, learning_rate)


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
    """The sentence."""
    return InputError(
        f"training diverged at step {step}: {problem}; lower {key} (now {learning_rate:g})"
    )
