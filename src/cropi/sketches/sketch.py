"""What a sketch is: a linear map of gradients, defined by a seed, names and shapes alone.

A sketch accumulates `width` numbers per prompt while a batch's gradients stream by, and makes `dim`
of them at the end. For most the two are the same. A `FittedSketch` accumulates more, and compresses
them by what it learnt from a sample of pool prompts.

Shape legend: P prompts of a batch, R rows, I width of a parameter, W the sketch's width, D its
dimensions, n all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.consumers import block_squares
from cropi.gradients.contributions import Contribution
from cropi.gradients.ranks import Ranks
from cropi.sketches.settings import SketchChoice
from cropi.text import shown

Sink = Callable[[Tensor, Tensor, Tensor], None]
"""Takes a batch: places int64 [P], sketches fp32 [P, D], gradient norms float64 [P]."""


Shapes = Mapping[str, tuple[int, ...]]
"""The parameters' shapes by name."""
REQUIRED = ("dim", "width", "identity", "project", "takes_factors", "project_factors", "compress")
"""What every sketch has."""


def make_sketch(sketch: SketchChoice | str, shapes: Shapes, seed: int, **settings: Any) -> Sketch:
    """Return the chosen sketch of parameters with these shapes.

    A name with `settings` may be given instead of a choice that includes them. The plug-in is
    called as object(settings, shapes=, seed=). Raises InputError for an unknown name, and if what
    the plug-in returns is not a sketch.
    """
    if isinstance(sketch, str):
        sketch = SketchChoice.of(sketch, **settings)
    made: Sketch = sketch.build(shapes=shapes, seed=seed)
    missing = [name for name in REQUIRED if not hasattr(made, name)]
    if missing:
        raise InputError(
            f"sketch {sketch.name!r} made {shown(made, 60)}, which lacks {', '.join(missing)}; "
            "return an object with the methods of cropi.sketches.sketch.Sketch"
        )
    return made


class Sketch(Protocol):
    """A linear map P of the concatenation of all parameters to `dim` dimensions.

    Two sketches with equal identities are the same map on every machine, whatever the order of
    the parameters, the tiles of rows and the batches.
    """

    @property
    def dim(self) -> int:
        """Numbers per finished sketch."""

    @property
    def width(self) -> int:
        """Numbers per prompt while its gradient streams by."""

    @property
    def identity(self) -> dict[str, str]:
        """What defines the map, as strings for a file's metadata."""

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the sketch of fp32 `gradient_PRI`, some rows of a parameter, to fp32 `out_PW`.

        `rows` is a slice with start and stop, or int64 [R].
        """

    def takes_factors(self, name: str) -> bool:
        """Whether `project_factors` is cheaper for a parameter than its dense gradient."""

    def project_factors(
        self, name: str, contributions: Sequence[Contribution], out_PW: Tensor
    ) -> None:
        """Add the sketch of a whole parameter's gradient, the sum of its contributions."""

    def compress(self, wide_PW: Tensor) -> Tensor:
        """Finished sketches fp32 [P, D] from what was accumulated."""


@runtime_checkable
class FittedSketch(Sketch, Protocol):
    """A sketch that must see wide sketches of a sample of the pool before it can compress.

    It never sees targets, and its fitted state is part of its identity.
    """

    sample: int
    """Prompts to fit it on; with fewer in the pool, all of them."""

    @property
    def is_fitted(self) -> bool:
        """Whether it has been fitted, and so can compress."""

    def fit(self, wide_NW: Tensor) -> None:
        """Fit to fp32 wide sketches [N, W] of prompts of the pool."""

    def state_bytes(self) -> bytes:
        """The fitted state, as the content of a file; equal state gives equal bytes."""

    def load_state(self, content: bytes) -> None:
        """Restore a state from `state_bytes`. Raises InputError if it is another sketch's."""


class PlainSketch:
    """What most sketches share: nothing to fit, dense rows, `width` is `dim`."""

    dim: int

    @property
    def width(self) -> int:
        """Numbers per prompt while its gradient streams by."""
        return self.dim

    def takes_factors(self, name: str) -> bool:
        """Dense rows are wanted for every parameter."""
        return False

    def project_factors(
        self, name: str, contributions: Sequence[Contribution], out_PW: Tensor
    ) -> None:
        """Unsupported: `takes_factors` is always false."""
        raise AssertionError(f"{type(self).__name__} takes no factors of {name}")

    def compress(self, wide_PW: Tensor) -> Tensor:
        """Return the sketches unchanged: they are finished."""
        return wide_PW


class SketchConsumer:
    """A gradient consumer that makes each prompt's sketch and gives it to `sink`.

    Only the current batch is held, [P, width]. Norms are those of the gradient where all of it
    came as dense rows, and of the sketch where some of it came as factors. With `wide` the sink
    gets what was accumulated, uncompressed: that is what a `FittedSketch` is fitted to.
    """

    def __init__(
        self, sketch: Sketch, sink: Sink, device: torch.device, wide: bool = False
    ) -> None:
        self.sketch = sketch
        self.sink = sink
        self.device = device
        self.wide = wide

    def begin(self, index_P: Tensor) -> None:
        """A batch of prompts starts."""
        self._index_P = index_P
        self._wide_PW = torch.zeros(len(index_P), self.sketch.width, device=self.device)
        self._squares_P = torch.zeros(len(index_P), dtype=torch.float64, device=self.device)
        self._dense = True

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Project some rows of one parameter."""
        self.sketch.project(name, rows, gradient_PRI, self._wide_PW)
        self._squares_P += block_squares(gradient_PRI.flatten(1))

    def takes_factors(self, name: str) -> bool:
        """Whether the sketch prefers the factors of a parameter."""
        return self.sketch.takes_factors(name)

    def consume_factors(self, name: str, contributions: Sequence[Contribution]) -> None:
        """Project one parameter without making its dense gradient."""
        self.sketch.project_factors(name, contributions, self._wide_PW)
        self._dense = False

    def finish(self) -> None:
        """Compress the batch's sketches and give them to the sink."""
        squares_P = self._squares_P if self._dense else block_squares(self._wide_PW)
        sketches = self._wide_PW if self.wide else self.sketch.compress(self._wide_PW)
        self.sink(self._index_P, sketches, squares_P.sqrt())
        del self._wide_PW

    def add_up(self, ranks: Ranks) -> None:
        """Every rank has the sketches of all prompts afterwards, if they are kept in memory."""
        if ranks.several and not isinstance(self.sink, SketchBuffer):
            raise InputError("sketches are written by one process only; start one, not several")
        if isinstance(self.sink, SketchBuffer):
            self.sink.add_up(ranks)


class SketchBuffer:
    """A sink that stores everything: `sketches` fp32 [n, D], `norms` float64 [n], on the CPU."""

    def __init__(self, prompts: int, dim: int) -> None:
        self.sketches = torch.zeros(prompts, dim)
        self.norms = torch.zeros(prompts, dtype=torch.float64)

    def __call__(self, index_P: Tensor, sketches_PD: Tensor, norms_P: Tensor) -> None:
        """Store a batch at its places."""
        places = index_P.cpu()
        self.sketches[places] = sketches_PD.cpu()
        self.norms[places] = norms_P.cpu()

    def add_up(self, ranks: Ranks) -> None:
        """Fill in the places of the other ranks' prompts, which are zero here."""
        ranks.add_up(self.sketches)
        ranks.add_up(self.norms)
