"""Where sketches go while many are compared: into target means, into cosines, or nowhere.

Shape legend: P prompts of a batch, D dimensions, V targets, N prompts of a sample, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Mean:
    """Mean sketches of the targets, float64 [V, D]."""

    def __init__(self, dim: int, targets: int) -> None:
        self.mean_VD = torch.zeros(targets, dim, dtype=torch.float64)

    def of(self, row: int, prompts: int) -> Callable[[Tensor, Tensor, Tensor], None]:
        """A sink that adds a target's prompts to its row."""

        def sink(index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
            self.mean_VD[row] += sketches_PD.double().sum(0).cpu() / prompts

        return sink


class Cosine:
    """A sink that keeps each prompt's cosine with the targets' mean sketches, [n, V]."""

    def __init__(self, mean_VD: Tensor, prompts: int) -> None:
        self.unit_DV = (mean_VD / mean_VD.norm(dim=1, keepdim=True).clamp_min(1e-300)).T
        self.cosines_PV = np.zeros((prompts, len(mean_VD)))

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Score a batch."""
        wide_PD = sketches_PD.double().cpu()
        lengths_P1 = wide_PD.norm(dim=1, keepdim=True).clamp_min(1e-300)
        self.cosines_PV[index_P.cpu().numpy()] = (wide_PD @ self.unit_DV / lengths_P1).numpy()


class Drop:
    """A sink for timing: the sketches leave the device, and are gone."""

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Wait for the sketches."""
        sketches_PD.cpu()


def keeper(wide_NW: Tensor) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A sink that keeps the first prompts' wide sketches, as many as there is room for."""

    def sink(index_P: Tensor, sketches_PW: Tensor, norms_P: Tensor) -> None:
        places = index_P.cpu()
        kept = places < len(wide_NW)
        wide_NW[places[kept]] = sketches_PW.cpu()[kept]

    return sink
