"""What exact influence makes of per-prompt gradients as they stream by: norms, means and dots.

Shape legend: P prompts of the batch, R rows, I width, V targets, C = R * I coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cropi.gradients.directions import Directions
from cropi.gradients.settings import TargetMemory
from cropi.gradients.sums import block_dots, block_squares
from cropi.influence.cosines import cosine


class NormConsumer:
    """Keeps the L2 norm of each prompt's gradient."""

    def __init__(self, prompts: int, device: torch.device) -> None:
        self._squares = torch.zeros(prompts, dtype=torch.float64, device=device)

    def begin(self, index_P: Tensor) -> None:
        """Remember whose gradients come."""
        self._index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add the squares of some rows."""
        self._squares.index_add_(0, self._index_P, block_squares(gradient_PRI.flatten(1)))

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def norms(self) -> np.ndarray:
        """Norms, float64 [n]."""
        return self._squares.sqrt().cpu().numpy()


class SumConsumer:
    """Sums gradients, weighted, into B directions: `weights_BN` says what each prompt adds to each.

    Sums are kept in fp32, where `memory` says.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        weights_BN: np.ndarray,
        device: torch.device,
        memory: TargetMemory = "fp32",
    ) -> None:
        self._weights_BN = torch.from_numpy(weights_BN).float().to(device)
        self.sums = Directions(shapes, len(weights_BN), device, memory)

    def begin(self, index_P: Tensor) -> None:
        """Look up what the batch's prompts weigh."""
        self._weights_BP = self._weights_BN[:, index_P]

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add some rows to the directions they belong to."""
        sums_BRI = torch.tensordot(self._weights_BP, gradient_PRI, 1)
        held = self.sums.values[name]
        where = rows.to(held.device) if isinstance(rows, Tensor) else rows
        held[:, where] += sums_BRI.to(held.device)

    def finish(self) -> None:
        """Nothing is left to do."""


class DirectionConsumer(SumConsumer):
    """Sums gradients, weighted, into two halves (even and odd prompts): their sum is gbar.

    The halves cost one more copy of the parameters and tell how far the direction can be trusted.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        weights: np.ndarray,
        device: torch.device,
        memory: TargetMemory = "fp32",
    ) -> None:
        even = np.arange(len(weights)) % 2 == 0
        # Sums are kept in fp32 even where the finished direction is not.
        held: TargetMemory = "offload" if memory == "offload" else "fp32"
        super().__init__(shapes, np.stack([weights * even, weights * ~even]), device, held)

    @property
    def halves(self) -> Directions:
        """The two sums."""
        return self.sums

    def write_direction(self, row: int, directions: Directions) -> None:
        """Put gbar into direction `row`."""
        for name, halves in self.halves.values.items():
            directions.write(name, row, halves.sum(0))

    def split_half(self) -> float:
        """Cosine of the two halves; NaN if one is empty or zero."""
        gram = np.zeros((2, 2))
        for halves in self.halves.values.values():
            flat = halves.flatten(1)
            gram += block_dots(flat, flat).cpu().numpy()
        return cosine(gram[0, 1], gram[0, 0], gram[1, 1])


class DotConsumer:
    """Keeps each prompt's inner product with V directions."""

    def __init__(self, directions: Directions, prompts: int) -> None:
        self._directions = directions
        self._dots = torch.zeros(
            prompts, directions.count, dtype=torch.float64, device=directions.device
        )

    def begin(self, index_P: Tensor) -> None:
        """Remember whose gradients come."""
        self._index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add the inner products of some rows."""
        directions_VC = self._directions.read(name, rows).flatten(1)
        self._dots.index_add_(0, self._index_P, block_dots(gradient_PRI.flatten(1), directions_VC))

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def dots(self) -> np.ndarray:
        """Inner products, float64 [n, V]."""
        return self._dots.cpu().numpy()


def lengths(directions: Directions) -> list[float]:
    """L2 norm of each direction, over all parameters."""
    total = np.zeros(directions.count)
    for name in directions.shapes:
        rows = slice(0, directions.values[name].shape[1])
        total += block_squares(directions.read(name, rows).flatten(1)).cpu().numpy()
    return [math.sqrt(value) for value in total]
