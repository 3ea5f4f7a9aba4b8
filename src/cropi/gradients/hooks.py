"""Hooks that collect per-prompt gradients from a model's layers during backward.

`LayerHooks` applies the rules of `layers` as backward reaches each one. A few rows of all prompts'
dense gradients are made at a time, handed to the consumers and overwritten by the next, so that
what consumers hold against them (target directions) is read once per batch, not once per prompt. A
hook is an autograd function that saves the layer's input, so gradient checkpointing drops and
recomputes it like everything else; the graph begins at the lowest layer whose gradient is wanted.

Shape legend: P prompts, R rows of a parameter, I its width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients import Unsupported
from cropi.gradients.collation import PromptBatch
from cropi.gradients.consumers import FactorConsumer, GradientConsumer
from cropi.gradients.contributions import (
    Contribution,
    DenseContribution,
    Workspace,
    matrix_shape,
    touched_rows,
)
from cropi.gradients.layers import LayerRule, head_rule, linear_rule, rule_for
from cropi.gradients.ranks import Ranks, tied_names
from cropi.gradients.tensor_parts import Part

TILE_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of dense fp32 gradients that exist at once, unless one row of every prompt needs more. On
a CPU they should stay in its cache: they are written once and read several times."""

ParameterOwners = dict[nn.Module, dict[str, str]]
"""The name of the parameter that a module holds under an attribute."""


def parameter_owners(model: nn.Module, names: Collection[str]) -> ParameterOwners:
    """The modules that hold these parameters; a tied weight has one name, and several owners.

    FSDP2 gives a module other parameter objects while its weights are gathered, so that an owner is
    what identifies a parameter, and an object is not.
    """
    ties = tied_names(model)
    first: dict[int, str] = {}
    owners: ParameterOwners = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            path = f"{prefix}.{attribute}" if prefix else attribute
            name = first.setdefault(id(parameter), ties.get(path, path))
            if name in names:
                owners.setdefault(module, {})[attribute] = name
    return owners


class _OutputHook(torch.autograd.Function):
    """The identity on a layer's output, which passes on the gradient that arrives there.

    `anchor` is a scalar that requires gradients: with every weight frozen nothing else does.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, inputs: Tensor, collect: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.collect = collect
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.collect(inputs, gradient)
        return gradient, None, None, None


class LayerHooks:
    """Hooks on every layer with wanted parameters; gives per-prompt gradients to consumers.

    Uses of a parameter are counted in forward and collected in backward; when the last use of a
    tied weight has arrived, the sum is made, some rows at a time, and consumed. `required` are the
    parameters of which every batch must bring gradients; `emitted` those that the last one brought.
    Several `ranks` make the same rows at the same time, or, where they share prompts, each those of
    its `parts`; with `everywhere` consumers get also parts that another rank counts.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        consumers: Sequence[GradientConsumer],
        required: frozenset[str],
        ranks: Ranks,
        parts: Mapping[str, Part],
        everywhere: bool = False,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.consumers = consumers
        self.required = required
        self.ranks = ranks
        self.parts = parts
        self.everywhere = everywhere
        self.owners = parameter_owners(model, parameters)
        self.emitted: set[str] = set()
        self.batch: PromptBatch | None = None
        self.counting = False
        self.expected: dict[str, int] = {}
        self.pending: dict[str, list[Contribution]] = {}
        device = next(iter(parameters.values())).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._device = device
        self._tiles = Workspace(device)
        self._work: list[Workspace] = []
        self._handles = ExitStack()

    def __enter__(self) -> LayerHooks:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if head is None or self.model.get_input_embeddings() is None:  # type: ignore[operator]
            raise Unsupported("the model does not name its embeddings")
        for module in self.model.modules():
            rule = rule_for(module)
            if module is head and rule is linear_rule:
                rule = head_rule
            if rule is not None and module in self.owners:
                # First among the module's hooks, so that FSDP2's surround it.
                handle = module.register_forward_hook(self._forward_hook(rule), prepend=True)
                self._handles.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()

    @contextmanager
    def collecting(self, batch: PromptBatch) -> Iterator[None]:
        """Collect for one batch; whatever has no further use is consumed at the end.

        Raises InputError if nothing came of a parameter that every batch has a gradient of.
        """
        self.batch, self.counting, self.expected, self.pending = batch, True, {}, {}
        self.emitted = set()
        self._slots = int(self.ranks.prompt_ranks.largest(batch.slots))
        try:
            for consumer in self.consumers:
                consumer.begin(batch.index_P)
            yield
            for name in list(self.pending):
                self._emit(name)
            self._require_all()
            for consumer in self.consumers:
                consumer.finish()
        finally:
            self.batch, self.pending = None, {}

    def _require_all(self) -> None:
        """Raise InputError if a parameter's gradient was lost: it would silently count as zero."""
        if lost := sorted(self.required - self.emitted):
            raise InputError(
                f"{len(lost)} of {len(self.parameters)} parameters had no gradient in a batch, "
                f"first {lost[0]}, although they had one when gradients were checked; leave out "
                "what changes the model between batches, or choose others (influence.parameters)"
            )

    def forward_done(self) -> None:
        """From here on layers are called only to recompute what checkpointing dropped."""
        self.counting = False

    def _forward_hook(self, rule: LayerRule) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
            batch = self.batch
            # Rules may call a layer again, without gradients, to see what it computes.
            if batch is None or not torch.is_grad_enabled():
                return None
            if len(inputs) != 1 or not isinstance(output, Tensor):
                raise Unsupported(f"{type(module).__name__} is not called as a plain layer")
            if self.counting:
                self._count_use(module)

            def collect(layer_inputs: Tensor, gradient: Tensor) -> None:
                self._collect(module, rule(module, layer_inputs, gradient, batch))

            hooked: Tensor = _OutputHook.apply(output, self._anchor, inputs[0].detach(), collect)  # type: ignore[no-untyped-call]
            return hooked

        return hook

    def _count_use(self, module: nn.Module) -> None:
        """One more use of the module's wanted parameters."""
        for name in self.owners[module].values():
            self.expected[name] = self.expected.get(name, 0) + 1

    def _collect(
        self, module: nn.Module, contributions: Iterator[tuple[str, Contribution]]
    ) -> None:
        for local, contribution in contributions:
            name = self.owners[module].get(local)
            if name is None:
                continue
            self.pending.setdefault(name, []).append(self.parts[name].restricted(contribution))
            if len(self.pending[name]) == self.expected[name]:
                self._emit(name)

    def _emit(self, name: str) -> None:
        """Give a parameter's gradient to each consumer, as factors if it takes them, or rows."""
        contributions = self.pending.pop(name)
        self.emitted.add(name)
        if self.parts[name].partial:
            contributions = [self._summed(each) for each in contributions]
        if not (self.everywhere or self.parts[name].counted):
            return
        dense: list[GradientConsumer] = []
        for consumer in self.consumers:
            if isinstance(consumer, FactorConsumer) and consumer.takes_factors(name):
                consumer.consume_factors(name, contributions)
            else:
                dense.append(consumer)
        if dense:
            self._emit_rows(name, contributions, dense)

    def _summed(self, contribution: Contribution) -> Contribution:
        """What all ranks' heads add to a parameter that each applies to its own."""
        if not isinstance(contribution, DenseContribution):
            raise Unsupported("a layer of which each rank has an addend of a large gradient")
        return DenseContribution(self.ranks.add_up(contribution.values_POI.clone()))

    def _emit_rows(
        self,
        name: str,
        contributions: Sequence[Contribution],
        consumers: Sequence[GradientConsumer],
    ) -> None:
        """Sum the uses of a parameter and emit them, some rows of all prompts at a time."""
        assert self.batch is not None
        height, width = matrix_shape(self.parts[name].shape)
        touched = touched_rows(contributions)
        if touched is not None:
            touched = self.ranks.prompt_ranks.union(touched)
            contributions = [c.within(touched) for c in contributions]  # type: ignore[attr-defined]
            height = len(touched)
        prompts = self.batch.slots
        limit = TILE_BYTES.get(self._device.type, 1 << 28)
        missing = len(contributions) - len(self._work)
        self._work += [Workspace(self._device) for _ in range(missing)]
        step = max(1, limit // (4 * self._slots * max(1, width)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            tile_PRI = self._tiles.take((prompts, rows.stop - start, width), torch.float32)
            for n, contribution in enumerate(contributions):
                contribution.add_rows(tile_PRI, rows, n == 0, self._work[n])
            for consumer in consumers:
                consumer.consume(name, rows if touched is None else touched[rows], tile_PRI)
