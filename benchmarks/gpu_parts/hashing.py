"""The Triton kernel of signed hashing: its results against torch's, and its share of bandwidth.

What a perfect kernel would do is read every gradient once; the share is the bytes of the gradients
over the time, as a part of what a copy moves.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cropi.sketches import SparseSketch
from cropi.sketches.sparse import hash_keys
from gpu_parts.machine import copy_bandwidth, fastest_of
from gpu_parts.place import Figures, NotHereError, Place

SEED = 5
FAR = 2**33 + 7
"""A first coordinate whose place needs more than 32 bits."""

VARIANTS = {
    "fp32": (torch.float32, 1.0, False),
    "bf16": (torch.bfloat16, 1.0, False),
    "fp32 reproducible": (torch.float32, 1.0, True),
    "fp32 15%": (torch.float32, 0.15, False),
}
"""dtype of the gradients, share of coordinates kept, whether sums do not depend on their order."""


def hashing(place: Place) -> Figures:
    """Errors of every variant, then bytes per second of every variant and number of prompts."""
    if find_spec("triton") is None:
        raise NotHereError("triton is not installed")
    if place.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernel is imported
    for name, variant in VARIANTS.items():
        yield f"error {name}", error(place, *variant)
    copied = copy_bandwidth(place)
    shares = {}
    for prompts in (4,) if place.tiny else (32, 128, 8):
        for name, variant in VARIANTS.items():
            shares[f"{name}, {prompts} prompts"] = bandwidth(place, prompts, *variant) / copied
            yield "shares", shares
            # The sketch itself asks for the reproducible variant.
            yield "share_of_bandwidth", max(v for n, v in shares.items() if "reproducible" not in n)


def error(place: Place, dtype: torch.dtype, ratio: float, reproducible: bool) -> float:
    """Largest difference from float64 on the CPU, relative to the largest sum."""
    from cropi.sketches.triton_hash import add_hashed

    width, dim = (40, 64) if place.tiny else (1536, 8192)
    rows = slice(3, 9)
    gradient = torch.randn(5, 6, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = torch.zeros(5, dim, device=place.device)
    add_hashed(gradient.to(place.device), rows, FAR, hash_keys(SEED), ratio, out, reproducible)
    expected = by_torch(gradient, rows, ratio, dim)
    return float((out.cpu().double() - expected).abs().max() / expected.abs().max())


def by_torch(gradient_PRI: Tensor, rows: slice, ratio: float, dim: int) -> Tensor:
    """The definition in float64: every coordinate to its bucket with its scaled sign."""
    prompts, _, width = gradient_PRI.shape
    numbers = torch.arange(rows.start, rows.stop)
    places = (FAR + numbers[:, None] * width + torch.arange(width)).flatten()
    sampled, bucket, sign = SparseSketch({"w": (1,)}, SEED, ratio, dim).coordinates(places)
    values_PC = gradient_PRI.double().flatten(1) * (sign * sampled).double()
    return torch.zeros(prompts, dim, dtype=torch.float64).index_add_(1, bucket, values_PC)


def bandwidth(place: Place, prompts: int, *variant: Any) -> float:
    """Bytes of gradients per second."""
    from cropi.sketches.triton_hash import add_hashed

    dtype, ratio, reproducible = variant
    # A tile as the layers make them: at most 256 MiB in fp32.
    height, width = (2, 40) if place.tiny else ((1 << 26) // (prompts * 8960), 8960)
    gradient = torch.randn(prompts, height, width, device=place.device, dtype=dtype)
    out = torch.zeros(prompts, 64 if place.tiny else 8192, device=place.device)
    keys = hash_keys(SEED)
    seconds = fastest_of(
        1 if place.tiny else 10,
        lambda: add_hashed(gradient, slice(0, height), 0, keys, ratio, out, reproducible),
    )
    return gradient.numel() * gradient.element_size() / seconds
