"""Inner products and squared norms of long vectors: fp32 within blocks, float64 across them.

A plain fp32 sum over millions of coordinates is off by 1e-3 (docs/method.md).

Shape legend: P prompts, V targets, C coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 14
"""Coordinates summed in fp32 before the sum goes on in float64."""

FEW = 4
"""Vectors below which batched products leave the fast road on CPUs: measured ten times slower."""


def pieces(values_XC: Tensor) -> list[Tensor]:
    """Views of BLOCK coordinates: all whole blocks as one [n, X, BLOCK], then the rest."""
    whole = values_XC.shape[1] // BLOCK * BLOCK
    views = []
    if whole:
        views.append(values_XC[:, :whole].view(len(values_XC), -1, BLOCK).transpose(0, 1))
    if whole < values_XC.shape[1]:
        views.append(values_XC[:, whole:])
    return views


def block_dots(gradient_PC: Tensor, directions_VC: Tensor) -> Tensor:
    """Inner products float64 [P, V] of fp32 vectors.

    Written as D g^T: with few, contiguous directions this order runs at memory speed.
    """
    prompts, targets = len(gradient_PC), len(directions_VC)
    if prompts < FEW and not gradient_PC.is_cuda:
        return _one_by_one(gradient_PC, directions_VC)
    total = torch.zeros(targets, prompts, dtype=torch.float64, device=gradient_PC.device)
    for g, d in zip(pieces(gradient_PC), pieces(directions_VC), strict=True):
        total += (d @ g.mT).double().reshape(-1, targets, prompts).sum(0)
    return total.T


def _one_by_one(gradient_PC: Tensor, directions_VC: Tensor) -> Tensor:
    """The same, a pair of vectors at a time: products of one row with one column stay fast."""
    whole = gradient_PC.shape[1] // BLOCK * BLOCK
    found = []
    for g in gradient_PC:
        # Transposed views of rows, not views as columns: those are five times slower.
        columns = g[:whole].view(-1, 1, BLOCK).mT
        for d in directions_VC:
            head = (d[:whole].view(-1, 1, BLOCK) @ columns).sum(dtype=torch.float64)
            found.append(head + torch.dot(d[whole:], g[whole:]))
    return torch.stack(found).view(len(gradient_PC), len(directions_VC))


def block_squares(gradient_PC: Tensor) -> Tensor:
    """Squared norms float64 [P] of fp32 vectors."""
    prompts = len(gradient_PC)
    total = torch.zeros(prompts, dtype=torch.float64, device=gradient_PC.device)
    for g in pieces(gradient_PC):
        squares = torch.linalg.vector_norm(g, dim=-1).double().square()
        total += squares.reshape(-1, prompts).sum(0)
    return total
