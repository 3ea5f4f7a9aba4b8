"""Consumers of streaming per-prompt gradients: norms, weighted sums and inner products.

Sums over long vectors are fp32 within blocks of BLOCK coordinates and float64 across them: a plain
fp32 sum over millions of coordinates is off by 1e-3 (docs/method.md).

Shape legend: P prompts of the batch, R rows, I width, V targets, B sums, C = R * I coordinates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from cropi.gradients.contributions import Contribution, matrix_shape
from cropi.gradients.ranks import ALONE, Ranks
from cropi.gradients.settings import TargetMemory

BLOCK = 1 << 14
"""Coordinates summed in fp32 before the sum continues in float64."""

LEAST_BATCHED = 4
"""Fewest prompts whose products are batched on a CPU; with fewer that is ten times slower."""


class GradientConsumer(Protocol):
    """Takes per-prompt gradients as they are made, batch by batch."""

    def begin(self, index_P: Tensor) -> None:
        """A batch of prompts `index_P` int64 [P], indices into the caller's list, starts."""

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Use fp32 gradients of some rows of parameter `name`, treated as a matrix.

        `rows` is a slice with start and stop, or sorted int64 [R]. Each row comes at most once per
        batch; one that never comes is zero. The tensor is reused afterwards: do not keep it.
        """

    def finish(self) -> None:
        """Every parameter of the batch's prompts has come."""


@runtime_checkable
class FactorConsumer(GradientConsumer, Protocol):
    """A consumer that does not need dense gradients of some parameters."""

    def takes_factors(self, name: str) -> bool:
        """Whether it wants the contributions of this parameter instead of its dense rows."""

    def consume_factors(self, name: str, contributions: Sequence[Contribution]) -> None:
        """Use all contributions of one parameter; their sum is the gradient."""


@runtime_checkable
class SharedConsumer(GradientConsumer, Protocol):
    """A consumer that several ranks can fill together, each with prompts of its own."""

    def add_up(self, ranks: Ranks) -> None:
        """After the one pass that it sees: make what was collected the same on every rank."""


@dataclass
class Directions:
    """V vectors over all parameters (target directions), read and written by rows.

    `shapes` are the parameters' shapes by name, `device` is where gradients are. Directions are the
    largest thing that exact influence holds besides the model: 4 bytes per trainable parameter and
    target in fp32. `memory` bf16 halves that (each coordinate is off by at most 1/256 of itself, a
    cosine by about 1e-4); `offload` holds fp32 outside the device's memory, in pinned host memory
    for a GPU and in a memory-mapped temporary file for a CPU, and brings rows in as they are used.
    Of several `ranks` each holds some rows; all of them read and add at the same time. Ranks that
    share prompts hold the coordinates of their own parts, whose shapes these are.
    """

    shapes: Mapping[str, tuple[int, ...]]
    count: int
    device: torch.device
    memory: TargetMemory = "fp32"
    ranks: Ranks = ALONE
    values: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        matrices = {name: matrix_shape(shape) for name, shape in self.shapes.items()}
        self.values = {
            name: self._zeros(self.count, self.ranks.held(height), width)
            for name, (height, width) in matrices.items()
        }

    def _zeros(self, *shape: int) -> Tensor:
        if self.memory != "offload":
            dtype = torch.bfloat16 if self.memory == "bf16" else torch.float32
            return torch.zeros(shape, dtype=dtype, device=self.device)
        if self.device.type == "cuda":
            return torch.zeros(shape, pin_memory=True)
        size = torch.Size(shape).numel()
        with tempfile.NamedTemporaryFile(prefix="cropi-directions-") as file:
            # The mapping outlives the file's name, and the file lives as long as its mapping.
            mapped = torch.from_file(file.name, shared=True, size=max(1, size))
        return mapped[:size].view(shape)

    def read(self, name: str, rows: slice | Tensor) -> Tensor:
        """Rows of one parameter of every direction, fp32 [V, R, I] on the gradients' device."""
        values = self.values[name]
        if self.ranks.prompt_ranks.several:
            return self._gathered(values, rows)
        if isinstance(rows, Tensor):
            chosen = values.index_select(1, rows.to(values.device))
        else:
            chosen = values[:, rows]
        return chosen.to(self.device, torch.float32, non_blocking=True)

    def _gathered(self, values_VOI: Tensor, rows: slice | Tensor) -> Tensor:
        """Rows of all ranks: each puts its own among zeros, and they are added up."""
        mine_R, own_R = self.ranks.own(rows, self.device)
        count = len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start
        out = torch.zeros(len(values_VOI), count, values_VOI.shape[2], device=self.device)
        own_VRI = values_VOI.index_select(1, own_R.to(values_VOI.device))
        out[:, mine_R] = own_VRI.to(self.device, torch.float32)
        return self.ranks.add_up(out)

    def add(self, name: str, rows: slice | Tensor, values_VRI: Tensor) -> None:
        """Add to rows of one parameter of every direction; several ranks add their sum."""
        values = self.values[name]
        where = rows.to(values.device) if isinstance(rows, Tensor) else rows
        if self.ranks.prompt_ranks.several:
            mine_R, own_R = self.ranks.own(rows, self.device)
            values_VRI = self.ranks.add_up(values_VRI)[:, mine_R]
            where = own_R.to(values.device)
        values[:, where] += values_VRI.to(values.device)

    def write(self, name: str, row: int, values_OI: Tensor) -> None:
        """Set one parameter of direction `row`, the rows that this rank holds."""
        self.values[name][row].copy_(values_OI)

    def norms(self) -> list[float]:
        """L2 norm of each direction, over all parameters."""
        total_V = torch.zeros(self.count, dtype=torch.float64)
        for values in self.values.values():
            total_V += block_squares(values.to(self.device, torch.float32).flatten(1)).cpu()
        return [math.sqrt(value) for value in self.ranks.add_up(total_V).tolist()]


class NormConsumer:
    """Collects the L2 norm of each prompt's gradient."""

    def __init__(self, prompts: int, device: torch.device) -> None:
        self._squares = torch.zeros(prompts, dtype=torch.float64, device=device)

    def begin(self, index_P: Tensor) -> None:
        """Remember which prompts the gradients belong to."""
        self._index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add the squares of some rows."""
        self._squares.index_add_(0, self._index_P, block_squares(gradient_PRI.flatten(1)))

    def finish(self) -> None:
        """Nothing to do."""

    def add_up(self, ranks: Ranks) -> None:
        """Every rank has the norms of all prompts afterwards."""
        ranks.add_up(self._squares)

    @property
    def norms(self) -> np.ndarray:
        """Norms, float64 [n]."""
        return self._squares.sqrt().cpu().numpy()


class SumConsumer:
    """Accumulates B weighted sums of gradients; `weights_BN` is each prompt's weight in each sum.

    Sums are held in fp32, where `memory` says.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        weights_BN: np.ndarray,
        device: torch.device,
        memory: TargetMemory = "fp32",
        ranks: Ranks = ALONE,
    ) -> None:
        self._weights_BN = torch.from_numpy(weights_BN).float().to(device)
        self.sums = Directions(shapes, len(weights_BN), device, memory, ranks)

    def begin(self, index_P: Tensor) -> None:
        """Look up the weights of the batch's prompts."""
        self._weights_BP = self._weights_BN[:, index_P]

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add some rows to the sums."""
        self.sums.add(name, rows, torch.tensordot(self._weights_BP, gradient_PRI, 1))

    def finish(self) -> None:
        """Nothing to do."""

    def add_up(self, ranks: Ranks) -> None:
        """Nothing to do: rows are added up as they come."""


class DirectionConsumer(SumConsumer):
    """Accumulates weighted gradients in two halves, whose sum is gbar.

    The halves cost one more copy of the parameters and show how reliable the direction is.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        weights_2N: np.ndarray,
        device: torch.device,
        memory: TargetMemory = "fp32",
        ranks: Ranks = ALONE,
    ) -> None:
        # Sums are held in fp32 even where the finished direction is not.
        sums_memory: TargetMemory = "offload" if memory == "offload" else "fp32"
        super().__init__(shapes, weights_2N, device, sums_memory, ranks)

    def rescale(self) -> float:
        """Divide the halves by a power of two if they could not be squared in fp32, and return it.

        A cosine does not depend on the length of its direction. Usually the divisor is 1.
        """
        held = [half for half in self.sums.values.values() if half.numel()]
        extremes = [float(torch.stack(half.aminmax()).abs().max()) for half in held]
        largest = self.sums.ranks.largest(max(extremes, default=0.0))
        if not 0 < largest < math.inf or 2.0**-30 <= largest <= 2.0**30:
            return 1.0
        divisor = 2.0 ** math.frexp(largest)[1]
        for values in self.sums.values.values():
            values.div_(divisor)
        return divisor

    def write_direction(self, row: int, directions: Directions) -> None:
        """Put gbar into direction `row`."""
        for name, halves in self.sums.values.items():
            directions.write(name, row, halves.sum(0))

    def half_products(self) -> np.ndarray:
        """Inner products of the two halves, float64 [2, 2]."""
        gram_22 = torch.zeros(2, 2, dtype=torch.float64)
        for halves in self.sums.values.values():
            flat = halves.flatten(1)
            gram_22 += block_dots(flat, flat).cpu()
        return np.asarray(self.sums.ranks.add_up(gram_22).numpy())


class DotConsumer:
    """Collects each prompt's inner product with V directions."""

    def __init__(self, directions: Directions, prompts: int) -> None:
        self._directions = directions
        self._dots = torch.zeros(
            prompts, directions.count, dtype=torch.float64, device=directions.device
        )

    def begin(self, index_P: Tensor) -> None:
        """Remember which prompts the gradients belong to."""
        self._index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Add the inner products of some rows."""
        directions_VC = self._directions.read(name, rows).flatten(1)
        self._dots.index_add_(0, self._index_P, block_dots(gradient_PRI.flatten(1), directions_VC))

    def finish(self) -> None:
        """Nothing to do."""

    def add_up(self, ranks: Ranks) -> None:
        """Every rank has the inner products of all prompts afterwards."""
        ranks.add_up(self._dots)

    @property
    def dots(self) -> np.ndarray:
        """Inner products, float64 [n, V]."""
        return self._dots.cpu().numpy()


def _blocks(values_XC: Tensor) -> list[Tensor]:
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
    if prompts < LEAST_BATCHED and not gradient_PC.is_cuda:
        return _pairwise_dots(gradient_PC, directions_VC)
    total = torch.zeros(targets, prompts, dtype=torch.float64, device=gradient_PC.device)
    for g, d in zip(_blocks(gradient_PC), _blocks(directions_VC), strict=True):
        total += (d @ g.mT).double().reshape(-1, targets, prompts).sum(0)
    return total.T


def _pairwise_dots(gradient_PC: Tensor, directions_VC: Tensor) -> Tensor:
    """The same, one pair of vectors at a time: products of one row with one column stay fast."""
    whole = gradient_PC.shape[1] // BLOCK * BLOCK
    dots = []
    for g in gradient_PC:
        # Transposed views of rows, not views as columns: those are five times slower.
        columns = g[:whole].view(-1, 1, BLOCK).mT
        for d in directions_VC:
            head = (d[:whole].view(-1, 1, BLOCK) @ columns).sum(dtype=torch.float64)
            dots.append(head + torch.dot(d[whole:], g[whole:]))
    return torch.stack(dots).view(len(gradient_PC), len(directions_VC))


def block_squares(gradient_PC: Tensor) -> Tensor:
    """Squared norms float64 [P] of fp32 vectors."""
    prompts = len(gradient_PC)
    total = torch.zeros(prompts, dtype=torch.float64, device=gradient_PC.device)
    for g in _blocks(gradient_PC):
        squares = torch.linalg.vector_norm(g, dim=-1).double().square()
        total += squares.reshape(-1, prompts).sum(0)
    return total
