"""Hooks that turn a backward pass into per-prompt gradients, layer by layer.

Each layer's rule gives its contributions as backward reaches it; the dense gradients of a few
prompts at a time are made, handed to the consumers and overwritten by the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cropi.gradients.batching import Batch
from cropi.gradients.layers import (
    Contribution,
    LayerRule,
    Unsupported,
    embedding_rule,
    head_rule,
    linear_rule,
    rule_for,
)

DENSE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Bytes of dense per-prompt gradients of one layer that exist at once, unless one prompt needs
more. On a CPU they should stay in its cache: they are written once and read twice."""


class GradientConsumer(Protocol):
    """Takes per-prompt gradients as they are made."""

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Use fp32 `gradient` [P, *shape] of parameter `name`, prompts `index_P` int64.

        Each (prompt, parameter) comes exactly once; a parameter that never comes is zero. The
        tensor is reused afterwards and must not be kept.
        """


class LayerTap:
    """Hooks on every layer with wanted parameters; hands per-prompt gradients to consumers.

    A use of a parameter is counted in forward and settled in backward; when the last use of a
    tied weight has arrived, the sum is made, a few prompts at a time, and consumed.
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
        self.expected: dict[str, int] = {}
        self.waiting: dict[str, list[Contribution]] = {}
        self._buffer = torch.empty(0)
        self._hooks = ExitStack()

    def __enter__(self) -> LayerTap:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        if head is None or embedding is None:
            raise Unsupported("the model does not name its embeddings")
        self._watch(head.register_forward_pre_hook(self._narrow, prepend=True))
        for module in self.model.modules():
            rule = rule_for(module)
            wanted = any(id(p) in self.names for p in module.parameters(recurse=False))
            if module is embedding or (wanted and rule is embedding_rule):
                self._watch(module.register_forward_hook(self._start_graph))
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
        self.batch, self.expected, self.waiting = batch, {}, {}
        try:
            yield
            for name in list(self.waiting):
                self._settle(name)
        finally:
            self.batch, self.waiting = None, {}

    def _start_graph(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """With all weights frozen, the graph begins at the embedded tokens."""
        return output if output.requires_grad or self.batch is None else output.requires_grad_(True)

    def _narrow(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Let the head see only the positions that predict a response token."""
        if self.batch is None:
            return None
        (hidden,) = inputs
        if hidden.shape[:2] != self.batch.shape:
            raise Unsupported(f"the head sees {tuple(hidden.shape)}, not rows x positions")
        return (hidden.flatten(0, 1)[self.batch.predictors_S].unsqueeze(0),)

    def _recorder(self, rule: LayerRule) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            batch = self.batch
            # Rules may call a layer again, without gradients, to see what it computes.
            if batch is None or not torch.is_grad_enabled():
                return
            if len(inputs) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
                raise Unsupported(f"{type(module).__name__} is not called as a plain layer")
            seen = inputs[0].detach()
            for parameter in module.parameters(recurse=False):
                if name := self.names.get(id(parameter)):
                    self.expected[name] = self.expected.get(name, 0) + 1

            def settle(gradient: Tensor) -> None:
                with torch.no_grad():
                    self._collect(module, rule(module, seen, gradient, batch))

            output.register_hook(settle)  # type: ignore[no-untyped-call]

        return record

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
        """Sum the uses of a parameter and hand the gradients on, a few prompts at a time."""
        assert self.batch is not None
        contributions = self.waiting.pop(name)
        shape = tuple(self.parameters[name].shape)
        prompts = self.batch.prompts
        limit = DENSE_BYTES.get(self.batch.index_P.device.type, 1 << 28)
        step = max(1, min(prompts, limit // (4 * math.prod(shape))))
        for start in range(0, prompts, step):
            index_P = self.batch.index_P[start : start + step]
            gradient = self._scratch(len(index_P), shape)
            for n, contribution in enumerate(contributions):
                contribution.add_to(gradient, start, first=n == 0)
            for consumer in self.consumers:
                consumer.consume(name, index_P, gradient)

    def _scratch(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """A fp32 [count, *shape] piece of one buffer: fresh memory costs more than the sums."""
        size = count * math.prod(shape)
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, device=next(iter(self.parameters.values())).device)
        return self._buffer[:size].view(count, *shape)
