"""Rollouts of the pocket model, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cropi.rollouts import write_rollouts
from cropi.schema import Response, RolloutGroup


def group(name: str, rng: np.random.Generator, dull: bool = False) -> RolloutGroup:
    """One prompt; a dull one has rewards that are all equal."""

    def response(reward: float) -> Response:
        ids = rng.integers(2, 30, rng.integers(1, 6)).astype(np.int32)
        return Response(ids, np.full(len(ids), -0.5, np.float32), "x", reward=reward)

    prompt = rng.integers(2, 30, 4).astype(np.int32)
    rewards = [1.0, 1.0] if dull else [0.0, 1.0, *rng.integers(0, 2, 2).astype(float)]
    return RolloutGroup(name, prompt, [response(r) for r in rewards])


def rollouts(path: Path, prompts: int, seed: int) -> Path:
    """A file in which every fourth prompt is dull."""
    rng = np.random.default_rng(seed)
    write_rollouts(path, [group(f"{path.stem}{n}", rng, n % 4 == 2) for n in range(prompts)])
    return path
