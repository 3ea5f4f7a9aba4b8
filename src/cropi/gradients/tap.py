"""Taps that turn a backward pass into per-prompt gradients, layer by layer.

Each layer's rule gives its contributions as backward reaches it. A few rows of all prompts'
dense gradients are made at a time, handed to the consumers and overwritten by the next, so that
what consumers hold against them (target directions) is read once a batch, not once a prompt.

A tap is an autograd function that saves what the layer saw, so that gradient checkpointing drops
and recomputes it with everything else; the graph begins at the first layer that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cropi.gradients.collation import Batch
from cropi.gradients.contributions import Contribution, Workspace, matrix_shape, touched_rows
from cropi.gradients.layers import LayerRule, Unsupported, head_rule, linear_rule, rule_for

TILE_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of dense fp32 gradients that exist at once, unless one row of every prompt needs more. On
a CPU they should stay in its cache: they are written once and read several times."""


class GradientConsumer(Protocol):
    """Takes per-prompt gradients as they are made, batch by batch."""

    def begin(self, index_P: Tensor) -> None:
        """A batch of prompts `index_P` int64 [P], places in the caller's list, starts."""

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Use fp32 gradients of some rows of parameter `name`, seen as a matrix.

        `rows` is a slice with start and stop, or sorted int64 [R]. Each row comes at most once a
        batch; one that never comes is zero. The tensor is reused afterwards: do not keep it.
        """

    def finish(self) -> None:
        """Every parameter of the batch's prompts has come."""


class FactorConsumer(GradientConsumer, Protocol):
    """A consumer that can do without dense gradients of some parameters."""

    def takes_factors(self, name: str) -> bool:
        """Whether it wants the contributions of this parameter instead of its dense rows."""

    def consume_factors(self, name: str, contributions: Sequence[Contribution]) -> None:
        """Use all contributions of one parameter; their sum is the gradient."""


class _Tap(torch.autograd.Function):
    """The identity on a layer's output, which shows the gradient that arrives there.

    `anchor` is a scalar that requires gradients: with every weight frozen nothing else does.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, seen: Tensor, settle: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(seen)
        ctx.settle = settle
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (seen,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.settle(seen, gradient)
        return gradient, None, None, None


class LayerTap:
    """Taps on every layer with wanted parameters; hands per-prompt gradients to consumers.

    A use of a parameter is counted in forward and settled in backward; when the last use of a
    tied weight has arrived, the sum is made, some rows at a time, and consumed.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        consumers: Sequence[GradientConsumer],
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.consumers = consumers
        self.names = {id(p): name for name, p in parameters.items()}
        self.batch: Batch | None = None
        self.counting = False
        self.expected: dict[str, int] = {}
        self.waiting: dict[str, list[Contribution]] = {}
        device = next(iter(parameters.values())).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._device = device
        self._tiles = Workspace(device)
        self._work: list[Workspace] = []
        self._hooks = ExitStack()

    def __enter__(self) -> LayerTap:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if head is None or self.model.get_input_embeddings() is None:  # type: ignore[operator]
            raise Unsupported("the model does not name its embeddings")
        for module in self.model.modules():
            rule = rule_for(module)
            wanted = any(id(p) in self.names for p in module.parameters(recurse=False))
            if module is head and rule is linear_rule:
                rule = head_rule
            if rule is not None and wanted:
                self._watch(module.register_forward_hook(self._recorder(rule)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _watch(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """Collect for one batch; whatever has no further use is consumed at the end."""
        self.batch, self.counting, self.expected, self.waiting = batch, True, {}, {}
        try:
            for consumer in self.consumers:
                consumer.begin(batch.index_P)
            yield
            for name in list(self.waiting):
                self._settle(name)
            for consumer in self.consumers:
                consumer.finish()
        finally:
            self.batch, self.waiting = None, {}

    def forward_is_done(self) -> None:
        """From here on layers are called only to recompute what checkpointing dropped."""
        self.counting = False

    def _recorder(self, rule: LayerRule) -> Callable[..., Tensor | None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
            batch = self.batch
            # Rules may call a layer again, without gradients, to see what it computes.
            if batch is None or not torch.is_grad_enabled():
                return None
            if len(inputs) != 1 or not isinstance(output, Tensor):
                raise Unsupported(f"{type(module).__name__} is not called as a plain layer")
            if self.counting:
                self._expect(module)

            def settle(seen: Tensor, gradient: Tensor) -> None:
                self._collect(module, rule(module, seen, gradient, batch))

            tapped: Tensor = _Tap.apply(output, self._anchor, inputs[0].detach(), settle)  # type: ignore[no-untyped-call]
            return tapped

        return record

    def _expect(self, module: nn.Module) -> None:
        """One more use of the module's wanted parameters."""
        for parameter in module.parameters(recurse=False):
            if name := self.names.get(id(parameter)):
                self.expected[name] = self.expected.get(name, 0) + 1

    def _collect(
        self, module: nn.Module, contributions: Iterator[tuple[str, Contribution]]
    ) -> None:
        for local, contribution in contributions:
            name = self.names.get(id(getattr(module, local)))
            if name is None:
                continue
            self.waiting.setdefault(name, []).append(contribution)
            if len(self.waiting[name]) == self.expected[name]:
                self._settle(name)

    def _settle(self, name: str) -> None:
        """Hand on a parameter's gradient: as factors if all consumers take them, else as rows."""
        contributions = self.waiting.pop(name)
        factored = [c for c in self.consumers if takes_factors(c, name)]
        for consumer in factored:
            consumer.consume_factors(name, contributions)  # type: ignore[attr-defined]
        dense = [c for c in self.consumers if c not in factored]
        if dense:
            self._settle_rows(name, contributions, dense)

    def _settle_rows(
        self,
        name: str,
        contributions: Sequence[Contribution],
        consumers: Sequence[GradientConsumer],
    ) -> None:
        """Sum the uses of a parameter and hand them on, some rows of all prompts at a time."""
        assert self.batch is not None
        height, width = matrix_shape(self.parameters[name].shape)
        touched = touched_rows(contributions)
        if touched is not None:
            contributions = [c.within(touched) for c in contributions]  # type: ignore[attr-defined]
            height = len(touched)
        prompts = self.batch.prompts
        limit = TILE_BYTES.get(self._device.type, 1 << 28)
        missing = len(contributions) - len(self._work)
        self._work += [Workspace(self._device) for _ in range(missing)]
        step = max(1, limit // (4 * prompts * max(1, width)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            tile_PRI = self._tiles.take((prompts, rows.stop - start, width), torch.float32)
            for n, contribution in enumerate(contributions):
                contribution.add_rows(tile_PRI, rows, n == 0, self._work[n])
            for consumer in consumers:
                consumer.consume(name, rows if touched is None else touched[rows], tile_PRI)


def takes_factors(consumer: GradientConsumer, name: str) -> bool:
    """Whether a consumer can do without the dense gradient of a parameter."""
    takes = getattr(consumer, "takes_factors", None)
    return bool(takes is not None and takes(name))


def hand_over(consumer: GradientConsumer, name: str, gradient: Tensor) -> None:
    """Give a consumer one prompt's whole gradient of a parameter, in the parameter's shape."""
    height, width = matrix_shape(gradient.shape)
    consumer.consume(name, slice(0, height), gradient.float().reshape(1, height, width))
