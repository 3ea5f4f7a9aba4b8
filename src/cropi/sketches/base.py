"""What a sketch is: a linear map of gradients, defined by a seed, names and shapes alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Sketch(Protocol):
    """A random projection P of the concatenation of all parameters to `dim` dimensions.

    Two sketches with equal identities are the same map on every machine, whatever the order in
    which parameters arrive.
    """

    dim: int

    @property
    def identity(self) -> dict[str, str]:
        """What defines the map, as strings for a file's metadata."""

    def project(self, name: str, gradient: Tensor, out_PD: Tensor) -> None:
        """Add P applied to fp32 `gradient` [P, *shape] of parameter `name` to fp32 `out_PD`."""


class SketchConsumer:
    """A gradient consumer that keeps each prompt's sketch.

    `sketches` is fp32 [n, dim], on the CPU's or the model's device, as given.
    """

    def __init__(self, sketch: Sketch, prompts: int, device: torch.device) -> None:
        self.sketch = sketch
        self.sketches = torch.zeros(prompts, sketch.dim, device=device)

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Project one parameter's gradients and add them to the prompts' sketches."""
        part = self.sketches.new_zeros(len(index_P), self.sketch.dim)
        self.sketch.project(name, gradient, part)
        self.sketches.index_add_(0, index_P.to(self.sketches.device), part)
