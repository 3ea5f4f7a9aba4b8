"""Feature stores without a model: random sketches, one with a large gradient, one with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cropi.influence.features import FeatureStore, FeatureWriter, StoreIdentity

DIM = 64


def identity(prompts: int, **changes: Any) -> StoreIdentity:
    plain = StoreIdentity(
        sketch={"sketch": "fake", "seed": "0"},
        policy="weights",
        rollouts="rows",
        dim=DIM,
        prompts=prompts,
        pool_size=prompts + 3,
        settings={"objective": {"ratio": "token", "clip": None}},
        skipped={"rewards all equal": 3},
        rows_per_shard=8,
    )
    return replace(plain, **changes)


def sketches(prompts: int, dim: int = DIM, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sketches fp32 [prompts, dim] around a common direction, and gradient norms float64."""
    draws = torch.Generator().manual_seed(seed)
    sketches_PD = torch.randn(prompts, dim, generator=draws)
    sketches_PD += 0.5 * torch.randn(dim, generator=draws)
    sketches_PD *= torch.rand(prompts, 1, generator=draws).add(0.1)
    sketches_PD[1] *= 1e4
    sketches_PD[2] = 0
    noise = torch.rand(prompts, generator=draws, dtype=torch.float64) * 0.1 + 0.95
    return sketches_PD, sketches_PD.double().norm(dim=1) * noise


def ids(prompts: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{n:06d}" for n in range(prompts)]


def writer(folder: Path, described: StoreIdentity, **settings: Any) -> FeatureWriter:
    count = described.prompts
    return FeatureWriter(folder, described, ids(count), list(range(count)), **settings)


def fill(
    writing: FeatureWriter, features: tuple[Tensor, Tensor], shards: int | None = None
) -> None:
    """Write what is pending, in backward batches of three; only the first `shards`."""
    sketches_PD, norms_P = features
    for number, places in writing.pending()[:shards]:
        with writing.shard(number) as sink:
            for index_P in torch.arange(len(places)).flip(0).split(3):
                rows = index_P + places.start
                sink(index_P, sketches_PD[rows], norms_P[rows])


def store(folder: Path, prompts: int = 21, seed: int = 0, **changes: Any) -> FeatureStore:
    described = identity(prompts, **changes)
    fill(writer(folder, described), sketches(prompts, described.dim, seed))
    return FeatureStore(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def cosines_of(pool: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Plain cosines in float64; 0 for a zero row."""
    lengths = np.linalg.norm(pool, axis=1) * np.linalg.norm(direction)
    return pool @ direction / np.where(lengths > 0, lengths, np.inf)
