"""Dense Johnson-Lindenstrauss projections: `dim` random numbers for every coordinate.

They are what signed hashing is compared with, `dim` times its work. Entries come from counters
(place, dimension), a few coordinates at a time; the matrix is never stored.

Shape legend: P prompts, K coordinates, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cropi.sketches.counter_rng import WORD, gaussians, keys, mix64, signs

DENSE = ("rademacher", "gaussian")

ENTRIES = 1 << 20
"""Entries of the matrix that exist at once."""


def add_dense(
    values_PK: Tensor, places_K: Tensor, projection: str, seed: int, out_PD: Tensor
) -> None:
    """Add the projection of coordinates at int64 places to fp32 `out_PD`."""
    dim = out_PD.shape[1]
    entries = rademacher_entries if projection == "rademacher" else gaussian_entries
    step = max(1, ENTRIES // dim)
    for first in range(0, len(places_K), step):
        part = slice(first, first + step)
        matrix_KD = entries(places_K[part], dim, seed)
        out_PD.addmm_(values_PK[:, part], matrix_KD, alpha=1 / math.sqrt(dim))


def rademacher_entries(places_K: Tensor, dim: int, seed: int) -> Tensor:
    """Independent signs fp32 [K, D]."""
    words = -(-dim // WORD)
    (key,) = keys("dense.rademacher", seed, 1)
    return signs(mix64(_counters(places_K, words), key)).view(len(places_K), -1)[:, :dim]


def gaussian_entries(places_K: Tensor, dim: int, seed: int) -> Tensor:
    """Independent standard normals fp32 [K, D]."""
    (key,) = keys("dense.gaussian", seed, 1)
    return gaussians(_counters(places_K, dim), key).view(len(places_K), dim)


def _counters(places_K: Tensor, each: int) -> Tensor:
    """`each` numbers of its own for every place, flat int64."""
    within = torch.arange(each, dtype=torch.int64, device=places_K.device)
    return ((places_K * each).unsqueeze(1) + within).flatten()
