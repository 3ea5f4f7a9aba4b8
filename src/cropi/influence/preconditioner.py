"""Influence of a step that Adam takes, to first order.

Adam moves the parameters along Gamma g(s), with Gamma = diag(1 / (sqrt(v) + eps)), where plain
gradient ascent moves them along g(s). Gamma is diagonal, so what the step does for a target is

    <gbar_V, Gamma g(s)> = <Gamma gbar_V, g(s)>

and it is enough to scale the few directions; prompts' gradients stay as they are. The cosine
divides by |Gamma gbar_V| and |g(s)|: prompts are ranked by gain for a step of given gradient
norm. v is the second moment *before* the step, without its bias; momentum and weight decay are
the same whichever prompt is chosen, and do not affect the ranking.

Departure from Adam: a floor under sqrt(v). A coordinate that was never trained has v = 0, and
1 / eps is a hundred million; one such coordinate (an embedding row whose token never occurred)
would dominate the direction. Adam itself does not explode there, because it puts the step's
gradient g into v before it divides: after t steps with weight w = (1 - beta2) / (1 - beta2^(t+1)),
1/4 after three steps and 1 - beta2 in the long run, so that sqrt(v) is never below sqrt(w) |g|. As
Gamma must not depend on the prompt, a gradient of the tensor's usual size is used for g: the floor
is sqrt(w) times the root mean square of sqrt(v) in the tensor. On a tiny model after three steps,
of all floors this one came closest to the steps that AdamW really took.

Shape legend: V targets, P prompts, R rows and I columns of a parameter seen as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.consumers import SharedConsumer
from cropi.gradients.contributions import matrix_shape
from cropi.gradients.ranks import Ranks
from cropi.policy.optimizer_state import SecondMoments

Held = Callable[[str, Tensor], Tensor]
"""What a rank holds of a parameter, by its name, from the matrix of all of its values."""


@dataclass
class Preconditioner:
    """The diagonal Gamma = 1 / (max(sqrt(v), floor * rms) + eps), by parameter name.

    `floor` is a share of the root mean square of sqrt(v) within each tensor, or over all tensors
    if this one was never trained; None is sqrt(w) of the module's docstring, 0 is no floor. Raises
    InputError if the moments are all zero or not finite, or if `floor` is negative.
    """

    moments: SecondMoments
    floor: float | None = None
    _mean: dict[str, float] = field(init=False)
    _overall: float = field(init=False)

    def __post_init__(self) -> None:
        if self.floor is not None and not 0 <= self.floor < math.inf:
            raise InputError(f"floor = {self.floor} is not a share of a size; give 0 or more")
        sums = {name: _total(self.moments.corrected(name)) for name in self.moments}
        sizes = {name: value.numel() for name, value in self.moments.raw.items()}
        for name, total in sums.items():
            if not math.isfinite(total):
                raise InputError(
                    f"the second moments of {name} are not finite; give another checkpoint"
                )
        trained = [name for name, total in sums.items() if total > 0]
        if not trained:
            raise InputError(
                "the second moments are all zero, so no step had a gradient; give a later "
                "checkpoint, or compute influence without the optimizer"
            )
        self._mean = {name: sums[name] / max(1, sizes[name]) for name in sums}
        self._overall = sum(sums[n] for n in trained) / sum(sizes[n] for n in trained)

    @property
    def identity(self) -> dict[str, str]:
        """What defines Gamma, as strings for a file's metadata."""
        return {
            "preconditioner": "adam",
            "floor": repr(self.floor),
            "moments": self.moments.source,
        }

    def scale(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Gamma's diagonal for one parameter, fp32 in its shape, computed on `device`."""
        root = self.moments.corrected(name).to(device).sqrt()
        smallest = self._share(name) * math.sqrt(self._mean[name] or self._overall)
        return root.clamp_(min=smallest).add_(self.moments.eps).reciprocal_()

    def _share(self, name: str) -> float:
        """The floor of one parameter, as a share of the usual size of sqrt(v)."""
        if self.floor is not None:
            return self.floor
        beta2, steps = self.moments.beta2, self.moments.steps[name]
        return math.sqrt((1 - beta2) / (1 - beta2 ** (steps + 1)))

    def apply(self, directions: Mapping[str, Tensor], held: Held | None = None) -> None:
        """Multiply directions, by name [V, rows, columns] or flat, by what is held of Gamma.

        Raises InputError for a parameter that the optimizer did not train.
        """
        self.require(directions)
        for name, values in directions.items():
            scale = self.scale(name, values.device)
            matrix = scale.reshape(matrix_shape(scale.shape))
            values.mul_((held(name, matrix) if held else matrix).reshape(values.shape[1:]))

    def require(self, names: Mapping[str, object]) -> None:
        """Raise InputError unless there are moments for all of these parameters."""
        if missing := [name for name in names if name not in self.moments]:
            raise InputError(
                f"the checkpoint's optimizer did not train {len(missing)} of the parameters that "
                f"influence is over, first {missing[0]}; give a checkpoint that trained them"
            )


class PreconditioningConsumer:
    """Passes every gradient on, multiplied by Gamma; wrap what takes the *targets'* gradients.

    Gamma is held on the gradients' device, 4 bytes per parameter, as long as this consumer exists.
    It has no `consume_factors`: a matrix of scales does not pass through a product.
    """

    def __init__(self, inner: SharedConsumer, preconditioner: Preconditioner) -> None:
        self.inner = inner
        self.preconditioner = preconditioner
        self._scales: dict[str, Tensor] = {}
        self._buffer = torch.empty(0)

    def begin(self, index_P: Tensor) -> None:
        """A batch of prompts starts."""
        self.inner.begin(index_P)

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Scale a tile of rows, leaving the original to the other consumers."""
        scale_RI = self._scale(name, gradient_PRI.device)[rows]
        if self._buffer.numel() < gradient_PRI.numel() or self._buffer.device != scale_RI.device:
            self._buffer = torch.empty(gradient_PRI.numel(), device=scale_RI.device)
        scaled_PRI = self._buffer[: gradient_PRI.numel()].view(gradient_PRI.shape)
        self.inner.consume(name, rows, torch.mul(gradient_PRI, scale_RI, out=scaled_PRI))

    def finish(self) -> None:
        """Every parameter of the batch's prompts has come."""
        self.inner.finish()

    def add_up(self, ranks: Ranks) -> None:
        """As the wrapped consumer does."""
        self.inner.add_up(ranks)

    def _scale(self, name: str, device: torch.device) -> Tensor:
        """Gamma of a parameter as a matrix [rows, columns]."""
        if name not in self._scales:
            scale = self.preconditioner.scale(name, device)
            self._scales[name] = scale.reshape(matrix_shape(scale.shape))
        return self._scales[name]


def _total(values: Tensor) -> float:
    """Sum in float64, piece by piece; NaN and infinity show in it."""
    return float(sum(piece.double().sum() for piece in torch.split(values.reshape(-1), 1 << 24)))
