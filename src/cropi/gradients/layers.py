"""Per-prompt gradients of single layers, and the hooks that collect them during backward.

For a linear layer the gradient of prompt p is the sum over its tokens of g_t x_t^T: one batched
matmul over prompts, which costs what the ordinary weight gradient costs. Each rule turns a layer's
input (forward) and the gradient at its output (backward) into one `Contribution` per parameter.

`LayerHooks` applies the rules as backward reaches each layer. A few rows of all prompts' dense
gradients are made at a time, handed to the consumers and overwritten by the next, so that what
consumers hold against them (target directions) is read once per batch, not once per prompt. A hook
is an autograd function that saves the layer's input, so gradient checkpointing drops and recomputes
it like everything else; the graph begins at the lowest layer whose gradient is wanted.

A layer without a rule raises `Unsupported`; the extractor then takes the slow, plain path.

Shape legend: N rows, L positions, T = N*L, S predicting positions, P prompts, R rows of a
parameter, I in, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from cropi.gradients import Unsupported
from cropi.gradients.collation import PromptBatch
from cropi.gradients.consumers import FactorConsumer, GradientConsumer
from cropi.gradients.contributions import (
    Contribution,
    MatrixContribution,
    RowsContribution,
    VectorContribution,
    Workspace,
    matrix_shape,
    touched_rows,
)

TILE_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of dense fp32 gradients that exist at once, unless one row of every prompt needs more. On
a CPU they should stay in its cache: they are written once and read several times."""


def flat_positions(values_NLX: Tensor, batch: PromptBatch) -> Tensor:
    """View [N, L, X] as [T, X], one vector per position."""
    if values_NLX.shape[:2] != batch.shape:
        raise Unsupported(
            f"an activation of shape {tuple(values_NLX.shape)} is not rows x positions"
        )
    return values_NLX.reshape(-1, values_NLX.shape[2])


class LayerRule(Protocol):
    """How one kind of layer turns its input and an output gradient into contributions."""

    def __call__(
        self, module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
    ) -> Iterator[tuple[str, Contribution]]:
        """Yield (parameter name within the module, contribution)."""


def linear_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
) -> Iterator[tuple[str, Contribution]]:
    """`nn.Linear`: weight [O, I] and bias [O]."""
    left_TO = flat_positions(output_gradient, batch)
    right_TI = flat_positions(inputs, batch)
    yield "weight", MatrixContribution(left_TO, right_TI, batch.positions)
    if getattr(module, "bias", None) is not None:
        sums_NO = output_gradient.sum(1, dtype=torch.float32)
        yield "bias", VectorContribution(sum_by_prompt(sums_NO, batch.slot_N, batch))


def conv1d_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
) -> Iterator[tuple[str, Contribution]]:
    """GPT-2's `Conv1D`: a linear layer whose weight is stored as [I, O]."""
    for name, contribution in linear_rule(module, inputs, output_gradient, batch):
        if isinstance(contribution, MatrixContribution):
            left, right = contribution.right_TI, contribution.left_TO
            contribution = MatrixContribution(left, right, contribution.segments)
        yield name, contribution


def head_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
) -> Iterator[tuple[str, Contribution]]:
    """The output head, which sees only the predicting positions: [1, S, ...]."""
    left_SO, right_SI = output_gradient[0], inputs[0]
    yield "weight", MatrixContribution(left_SO, right_SI, batch.predictions)
    if getattr(module, "bias", None) is not None:
        yield "bias", VectorContribution(sum_by_prompt(left_SO.float(), batch.slot_S, batch))


def embedding_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
) -> Iterator[tuple[str, Contribution]]:
    """`nn.Embedding`, and Gemma's scaled one; the padding row gets no gradient, as in torch."""
    assert isinstance(module, nn.Embedding)
    if inputs.shape != batch.shape:
        raise Unsupported(f"an embedding of ids {tuple(inputs.shape)}, not rows x positions")
    scale = getattr(module, "embed_scale", None)
    if scale is not None:
        output_gradient = output_gradient * scale
    if module.padding_idx is not None:
        not_padding = inputs.ne(module.padding_idx).unsqueeze(-1)
        output_gradient = output_gradient * not_padding
    values_TI = flat_positions(output_gradient, batch)
    yield "weight", RowsContribution(inputs.reshape(-1), values_TI, batch.positions)


def elementwise_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: PromptBatch
) -> Iterator[tuple[str, Contribution]]:
    """Norms: any layer that is affine, elementwise, in each of its vectors.

    f(x; w) = f(x; 0) + w * h(x), so h = f(x; 1) - f(x; 0) for every variant (RMSNorm, Gemma's
    1 + w, LayerNorm with bias), and the gradient is the output gradient times h, summed over
    everything but the row and the last axis.
    """
    rows = batch.shape[0]
    if inputs.shape[0] != rows or output_gradient.shape != inputs.shape:
        raise Unsupported(f"a norm over {tuple(inputs.shape)}, whose first axis is not the rows")
    names = [name for name, _ in module.named_parameters(recurse=False)]
    wide, gradient = inputs.detach().float(), output_gradient.float()
    zeros = {n: torch.zeros_like(module.get_parameter(n), dtype=torch.float32) for n in names}
    # Most norms are zero at w = 0. One vector shows it, because all vectors are treated alike.
    probe = torch.linspace(1, 2, wide.shape[-1], device=wide.device).expand(wide[:1, :1].shape)
    vanishes = not functional_call(module, zeros, (probe,)).any()
    base = None if vanishes else functional_call(module, zeros, (wide,))
    for name in names:
        slope = functional_call(module, {**zeros, name: torch.ones_like(zeros[name])}, (wide,))
        slope = slope if base is None else slope - base
        per_row = (gradient * slope).reshape(rows, -1, inputs.shape[-1]).sum(1)
        yield name, VectorContribution(sum_by_prompt(per_row, batch.slot_N, batch))


def sum_by_prompt(values_XC: Tensor, slot_X: Tensor, batch: PromptBatch) -> Tensor:
    """Sum fp32 vectors over each prompt -> [P, C]."""
    return values_XC.new_zeros(batch.slots, values_XC.shape[1]).index_add_(0, slot_X, values_XC)


def rule_for(module: nn.Module) -> LayerRule | None:
    """Return the rule of a layer, or None.

    A subclass that overrides `forward` is not what it inherits from, so it has no rule; the
    exception is the scaled embedding, whose only difference is a factor.
    """
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return linear_rule
    if isinstance(module, Conv1D) and forward is Conv1D.forward:
        return conv1d_rule
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.sparse and not module.scale_grad_by_freq
        covered = forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return embedding_rule if plain and covered else None
    parameters = list(module.parameters(recurse=False))
    if "Norm" in type(module).__name__ and parameters and all(p.dim() == 1 for p in parameters):
        return elementwise_rule
    return None


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
            wanted = any(id(p) in self.names for p in module.parameters(recurse=False))
            if module is head and rule is linear_rule:
                rule = head_rule
            if rule is not None and wanted:
                handle = module.register_forward_hook(self._forward_hook(rule))
                self._handles.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()

    @contextmanager
    def collecting(self, batch: PromptBatch) -> Iterator[None]:
        """Collect for one batch; whatever has no further use is consumed at the end."""
        self.batch, self.counting, self.expected, self.pending = batch, True, {}, {}
        try:
            for consumer in self.consumers:
                consumer.begin(batch.index_P)
            yield
            for name in list(self.pending):
                self._emit(name)
            for consumer in self.consumers:
                consumer.finish()
        finally:
            self.batch, self.pending = None, {}

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
            self.pending.setdefault(name, []).append(contribution)
            if len(self.pending[name]) == self.expected[name]:
                self._emit(name)

    def _emit(self, name: str) -> None:
        """Give a parameter's gradient to each consumer, as factors if it takes them, or rows."""
        contributions = self.pending.pop(name)
        dense: list[GradientConsumer] = []
        for consumer in self.consumers:
            if isinstance(consumer, FactorConsumer) and consumer.takes_factors(name):
                consumer.consume_factors(name, contributions)
            else:
                dense.append(consumer)
        if dense:
            self._emit_rows(name, contributions, dense)

    def _emit_rows(
        self,
        name: str,
        contributions: Sequence[Contribution],
        consumers: Sequence[GradientConsumer],
    ) -> None:
        """Sum the uses of a parameter and emit them, some rows of all prompts at a time."""
        assert self.batch is not None
        height, width = matrix_shape(self.parameters[name].shape)
        touched = touched_rows(contributions)
        if touched is not None:
            contributions = [c.within(touched) for c in contributions]  # type: ignore[attr-defined]
            height = len(touched)
        prompts = self.batch.slots
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
