"""The parts of parameters that a rank of a tensor parallel model uses, and their gradients.

Ranks share the prompts. What a layer sees at its input and at its output is whole or this rank's
part, as transformers' plan has it; a part of a weight's gradient is made of the columns of either
that belong to it. So a rank's gradients are the coordinates of its parts, and inner products and
squared norms add up over the ranks. A parameter that all ranks hold whole is counted by one.

Shape legend: P prompts, T vectors, R rows, I width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cropi.gradients import Unsupported
from cropi.gradients.contributions import (
    Contribution,
    DenseContribution,
    MatrixContribution,
    RowsContribution,
    matrix_shape,
)
from cropi.gradients.ranks import Ranks, is_divided

PARTIAL = "replicated_with_grad_allreduce"
"""transformers' name for whole parameters that a rank applies to its own heads only."""


@dataclass(frozen=True)
class Part:
    """What a rank holds of one parameter, seen as a matrix.

    `rows` and `columns` are (start, stop) in the `whole` matrix. `divided` means that other ranks
    hold the rest, `partial` that each rank's gradient is one addend, `counted` that this rank's
    coordinates enter inner products and norms.
    """

    shape: tuple[int, ...]
    whole: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    divided: bool = False
    partial: bool = False
    counted: bool = True

    @classmethod
    def entire(cls, shape: Sequence[int]) -> Part:
        """All of a parameter."""
        height, width = matrix_shape(shape)
        return cls(tuple(shape), (height, width), (0, height), (0, width))

    def restricted(self, contribution: Contribution) -> Contribution:
        """The coordinates of a contribution that belong to this part."""
        if not self.divided:
            return contribution
        if isinstance(contribution, MatrixContribution):
            left = _columns(contribution.left_TO, self.whole[0], self.rows)
            right = _columns(contribution.right_TI, self.whole[1], self.columns)
            return MatrixContribution(left, right, contribution.segments)
        if isinstance(contribution, RowsContribution):
            return self._restricted_rows(contribution)
        assert isinstance(contribution, DenseContribution)
        return DenseContribution(_columns(contribution.values_POI, self.whole[1], self.columns))

    def _restricted_rows(self, looked_up: RowsContribution) -> RowsContribution:
        """Vectors of other ranks' rows become zero vectors of this rank's first or last row."""
        start, stop = self.rows
        values = _columns(looked_up.values_TI, self.whole[1], self.columns)
        here_T = (looked_up.ids_T >= start) & (looked_up.ids_T < stop)
        ids_T = (looked_up.ids_T - start).clamp(0, max(0, stop - start - 1))
        return RowsContribution(ids_T, values * here_T.unsqueeze(1), looked_up.segments)


def _columns(values: Tensor, whole: int, columns: tuple[int, int]) -> Tensor:
    """The columns of a part, of values that are whole or already those."""
    held = columns[1] - columns[0]
    if values.shape[-1] == held:
        return values
    if values.shape[-1] != whole:
        raise Unsupported(f"a layer sees {values.shape[-1]} of {whole} columns, and holds {held}")
    return values[..., columns[0] : columns[1]]


def rank_parts(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], ranks: Ranks
) -> dict[str, Part]:
    """The part of each parameter that this rank uses: all of it, unless ranks share the prompts."""
    if not ranks.share_prompts:
        return {name: Part.entire(p.shape) for name, p in parameters.items()}
    plan: Mapping[str, str] = getattr(model, "tp_plan", None) or {}
    parts, replicated = {}, 0
    for name, parameter in parameters.items():
        part = _part(parameter)
        if not part.divided:
            style = plan.get(re.sub(r"\.\d+(?=\.)", ".*", name.rpartition(".")[0]))
            counted = replicated % ranks.size == ranks.rank
            part = replace(part, partial=style == PARTIAL, counted=counted)
            replicated += 1
        parts[name] = part
    return parts


def _part(parameter: nn.Parameter) -> Part:
    entire = Part.entire(parameter.shape)
    if not isinstance(parameter, DTensor) or not is_divided(parameter):
        return entire
    if not parameter.placements[0].is_shard():
        # Strips of a packed layer: the layer sees them alone, and where they lie does not matter.
        return replace(Part.entire(parameter.to_local().shape), divided=True)
    shape, start = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    height, width = matrix_shape(shape)
    row, column = (0, start[0]) if len(shape) == 1 else (start[0], start[1])
    rows, columns = (row, row + height), (column, column + width)
    return Part(tuple(shape), entire.whole, rows, columns, divided=True)
