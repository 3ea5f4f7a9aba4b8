"""Target directions: one dense vector a validation set, held where there is room for it.

They are the largest thing that exact influence keeps beside the model: 4 bytes a trainable
parameter and target in fp32. `bf16` halves that (each coordinate is off by at most 1/256 of
itself, a cosine by about 1e-4); `offload` keeps fp32 outside the device's memory, in pinned host
memory for a GPU, in a memory-mapped temporary file for a CPU, and brings rows in as they are used.

Shape legend: V targets, R rows, I width of a parameter seen as a matrix.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cropi.gradients.contributions import matrix_shape
from cropi.gradients.settings import TargetMemory


@dataclass
class Directions:
    """V fp32 vectors over all parameters, read and written by rows.

    `shapes` are the parameters' shapes by name, `device` where gradients are.
    """

    shapes: Mapping[str, tuple[int, ...]]
    count: int
    device: torch.device
    memory: TargetMemory = "fp32"
    values: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {
            name: self._zeros(self.count, *matrix_shape(shape))
            for name, shape in self.shapes.items()
        }

    def _zeros(self, *shape: int) -> Tensor:
        if self.memory != "offload":
            dtype = torch.bfloat16 if self.memory == "bf16" else torch.float32
            return torch.zeros(shape, dtype=dtype, device=self.device)
        if self.device.type == "cuda":
            return torch.zeros(shape, pin_memory=True)
        size = max(1, torch.Size(shape).numel())
        with tempfile.NamedTemporaryFile(prefix="cropi-directions-") as file:
            # The mapping outlives the file's name, and the file its mapping.
            return torch.from_file(file.name, shared=True, size=size)[
                : torch.Size(shape).numel()
            ].view(shape)

    def read(self, name: str, rows: slice | Tensor) -> Tensor:
        """Rows of one parameter of every direction, fp32 [V, R, I] on the gradients' device."""
        found = self.values[name]
        if isinstance(rows, Tensor):
            found = found.index_select(1, rows.to(found.device))
        else:
            found = found[:, rows]
        return found.to(self.device, torch.float32, non_blocking=True)

    def write(self, name: str, row: int, values_OI: Tensor) -> None:
        """Set one parameter of direction `row`."""
        self.values[name][row].copy_(values_OI)
