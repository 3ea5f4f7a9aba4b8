"""Per-prompt gradients of single layers, from what goes in and the gradient at what comes out.

For a linear layer the gradient of prompt p is the sum over its tokens of g_t x_t^T: one batched
matmul over prompts, which costs what the ordinary weight gradient costs. Each rule turns a layer's
input (forward) and the gradient at its output (backward) into one `Contribution` per parameter;
`hooks` calls them.

A layer without a rule raises `Unsupported`; the extractor then takes the slow, plain path.

Shape legend: N rows, L positions, T = N*L, S predicting positions, P prompts, R rows of a
parameter, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cropi.gradients import Unsupported
from cropi.gradients.collation import PromptBatch
from cropi.gradients.contributions import (
    Contribution,
    DenseContribution,
    MatrixContribution,
    RowsContribution,
)


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
    right_TI = flat_positions(inputs, batch).to(left_TO.dtype)  # as autocast multiplied them
    yield "weight", MatrixContribution(left_TO, right_TI, batch.positions)
    if getattr(module, "bias", None) is not None:
        sums_NO = output_gradient.sum(1, dtype=torch.float32)
        yield "bias", DenseContribution.of_vectors(sum_by_prompt(sums_NO, batch.slot_N, batch))


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
    left_SO, right_SI = output_gradient[0], inputs[0].to(output_gradient.dtype)
    yield "weight", MatrixContribution(left_SO, right_SI, batch.predictions)
    if getattr(module, "bias", None) is not None:
        sums_PO = sum_by_prompt(left_SO.float(), batch.slot_S, batch)
        yield "bias", DenseContribution.of_vectors(sums_PO)


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
    vanishes = not _applied(module, zeros, probe).any()
    base = None if vanishes else _applied(module, zeros, wide)
    for name in names:
        slope = _applied(module, {**zeros, name: torch.ones_like(zeros[name])}, wide)
        slope = slope if base is None else slope - base
        per_row = (gradient * slope).reshape(rows, -1, inputs.shape[-1]).sum(1)
        yield name, DenseContribution.of_vectors(sum_by_prompt(per_row, batch.slot_N, batch))


def _applied(module: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What a layer's own code makes of an input with these parameters.

    Without its hooks, which are not called for this: FSDP2's would gather the layer's weights.
    """
    bare = object.__new__(type(module))
    vars(bare).update(vars(module), _parameters=parameters)
    result: Tensor = type(module).forward(bare, inputs)
    return result


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
