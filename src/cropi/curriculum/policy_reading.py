"""What a strategy reads of a stage's policy with forward passes: features, current pass rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.stage_rollouts import replace_groups
from cropi.policy.representations import prompt_features
from cropi.rollouts import read_rollouts
from cropi.rollouts.current_rates import current_pass_rates, tokens_read
from cropi.schema import RolloutGroup
from cropi.selection import Needs


@dataclass(frozen=True)
class PolicyReading:
    """Features [L, P, F] of the pool's prompts and their current pass rates [P], where needed.

    `tokens` went forward through the model, once.
    """

    features: NDArray[np.float64] | None = None
    current: NDArray[np.float64] | None = None
    tokens: int = 0


def read_policy(
    load: Callable[[], Any],
    needs: Needs,
    pool: Sequence[RolloutGroup],
    files: Sequence[Path],
    threshold: float | None,
    batch_tokens: int | None,
    features: NDArray[np.float64] | None = None,
) -> PolicyReading:
    """Read what a strategy needs of a policy; its model is loaded only if it needs something.

    `files` hold all rollouts of the pool so far, oldest first, and `threshold` turns rewards into
    passes. `features` are not read again where they are given.
    """
    if not (needs.features or needs.current):
        return PolicyReading()
    model, current, tokens = cache(load), None, 0
    if needs.features:
        features = prompt_features(model(), pool) if features is None else features
        tokens = prompt_tokens(pool)
    if needs.current:
        freshest = freshest_groups(pool, files)
        current = current_pass_rates(model(), freshest, threshold, batch_tokens)
        tokens += tokens_read(freshest, threshold)
    return PolicyReading(features, current, tokens)


def prompt_tokens(pool: Sequence[RolloutGroup]) -> int:
    """Tokens that a forward pass over the pool's prompts reads."""
    return sum(len(group.prompt_ids) for group in pool)


def freshest_groups(pool: Sequence[RolloutGroup], files: Sequence[Path]) -> list[RolloutGroup]:
    """The newest rollouts of each prompt that have a usable response, else the pool's."""
    groups = list(pool)
    for file in files:
        groups = replace_groups(groups, [g for g in read_rollouts(file) if g.usable])
    return groups
