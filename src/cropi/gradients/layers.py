"""Per-prompt parameter gradients of single layers, from activations and output gradients.

For a linear layer the gradient of prompt p is the sum over its tokens of g_t x_t^T: one batched
matmul over prompts, which costs what the ordinary weight gradient costs. Each rule here turns
what a layer saw (forward) and the gradient at its output (backward) into one `Contribution` a
parameter. Contributions are lazy, so that only a few prompts' dense gradients exist at a time,
and additive, so that a parameter used twice (tied embeddings) is the sum of its uses.

A layer without a rule raises `Unsupported`; the extractor then takes the slow, plain path.

Shape legend: N rows, L positions, P prompts, M tokens of a prompt (padded), I in, O out, V vocab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from cropi.gradients.batching import Batch


class Unsupported(Exception):  # noqa: N818 - not an error of the user's: it picks the slow path
    """A layer or a call pattern that no rule covers."""


class Contribution(Protocol):
    """One use of a parameter: its per-prompt gradients, made on demand."""

    def add_to(self, gradient: Tensor, start: int, first: bool) -> None:
        """Add the gradients of prompts [start, start + len(gradient)) to fp32 `gradient`.

        `first` means that `gradient` holds nothing yet (not even zeros) and is overwritten.
        """


@dataclass(frozen=True)
class MatrixContribution:
    """sum_t left_t right_t^T for each prompt; `left_PMO` and `right_PMI` in the compute dtype."""

    left_PMO: Tensor
    right_PMI: Tensor

    def add_to(self, gradient: Tensor, start: int, first: bool) -> None:
        """One batched matmul; its output may be bf16, the sum with other uses is fp32."""
        part = slice(start, start + len(gradient))
        left, right = self.left_PMO[part].transpose(1, 2), self.right_PMI[part]
        if left.dtype == torch.float32:
            torch.baddbmm(gradient, left, right, beta=0 if first else 1, out=gradient)
        elif first:
            gradient.copy_(torch.bmm(left, right))
        else:
            gradient.add_(torch.bmm(left, right))


@dataclass(frozen=True)
class VectorContribution:
    """A small gradient that is simply there: fp32 [P, ...]."""

    values: Tensor

    def add_to(self, gradient: Tensor, start: int, first: bool) -> None:
        """Add the slice."""
        values = self.values[start : start + len(gradient)].view_as(gradient)
        gradient.copy_(values) if first else gradient.add_(values)


@dataclass(frozen=True)
class RowsContribution:
    """Embedding: token m of prompt p adds `values_PMI` to row `ids_PM`."""

    ids_PM: Tensor
    values_PMI: Tensor

    def add_to(self, gradient: Tensor, start: int, first: bool) -> None:
        """Scatter the rows of each prompt into its own matrix."""
        if first:
            gradient.zero_()
        part = slice(start, start + len(gradient))
        prompts, vocabulary, width = gradient.shape
        offsets = torch.arange(prompts, device=gradient.device).unsqueeze(1) * vocabulary
        flat = (self.ids_PM[part] + offsets).flatten()
        values = self.values_PMI[part].reshape(-1, width).to(gradient.dtype)
        gradient.view(-1, width).index_add_(0, flat, values)


def by_prompt(values_NLX: Tensor, batch: Batch) -> Tensor:
    """Regroup [N, L, X] into [P, M, X]; rows that a prompt does not have are zeros."""
    rows, length = batch.shape
    if values_NLX.shape[:2] != (rows, length):
        raise Unsupported(
            f"an activation of shape {tuple(values_NLX.shape)} is not rows x positions"
        )
    most = batch.rows_PK.shape[1]
    if most == 1 and batch.prompts == rows:
        return values_NLX
    padded = torch.cat([values_NLX, torch.zeros_like(values_NLX[:1])])
    return padded[batch.rows_PK].flatten(1, 2)


def by_prompt_predictors(values_SX: Tensor, batch: Batch) -> Tensor:
    """Regroup [S, X], one row a predicting position, into [P, M, X]."""
    padded = torch.cat([values_SX, torch.zeros_like(values_SX[:1])])
    return padded[batch.predictors_PM]


class LayerRule(Protocol):
    """How one kind of layer turns a forward input and an output gradient into contributions."""

    def __call__(
        self, module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Contribution]]:
        """Yield (parameter name within the module, contribution)."""


def linear_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
) -> Iterator[tuple[str, Contribution]]:
    """`nn.Linear`: weight [O, I] and bias [O]."""
    gradient_PMO = by_prompt(output_gradient, batch)
    yield "weight", MatrixContribution(gradient_PMO, by_prompt(inputs, batch))
    if getattr(module, "bias", None) is not None:
        yield "bias", VectorContribution(gradient_PMO.sum(1, dtype=torch.float32))


def conv1d_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
) -> Iterator[tuple[str, Contribution]]:
    """GPT-2's `Conv1D`: a linear layer whose weight is stored as [I, O]."""
    for name, contribution in linear_rule(module, inputs, output_gradient, batch):
        if isinstance(contribution, MatrixContribution):
            contribution = MatrixContribution(contribution.right_PMI, contribution.left_PMO)
        yield name, contribution


def head_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
) -> Iterator[tuple[str, Contribution]]:
    """The output head, which sees only the predicting positions: [1, S, ...]."""
    gradient_PMO = by_prompt_predictors(output_gradient[0], batch)
    yield "weight", MatrixContribution(gradient_PMO, by_prompt_predictors(inputs[0], batch))
    if getattr(module, "bias", None) is not None:
        yield "bias", VectorContribution(gradient_PMO.sum(1, dtype=torch.float32))


def embedding_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
) -> Iterator[tuple[str, Contribution]]:
    """`nn.Embedding`, and Gemma's scaled one; the padding row gets no gradient, as in torch."""
    assert isinstance(module, nn.Embedding)
    if inputs.shape != batch.shape:
        raise Unsupported(f"an embedding of ids {tuple(inputs.shape)}, not rows x positions")
    scale = getattr(module, "embed_scale", None)
    if scale is not None:
        output_gradient = output_gradient * scale
    if module.padding_idx is not None:
        keep = inputs.ne(module.padding_idx).unsqueeze(-1)
        output_gradient = output_gradient * keep
    ids_PM = by_prompt(inputs.unsqueeze(-1), batch).squeeze(-1)
    yield "weight", RowsContribution(ids_PM, by_prompt(output_gradient, batch))


def elementwise_rule(
    module: nn.Module, inputs: Tensor, output_gradient: Tensor, batch: Batch
) -> Iterator[tuple[str, Contribution]]:
    """Norms: any layer that is affine, elementwise, in each of its vectors.

    f(x; w) = f(x; 0) + w * h(x), so h = f(x; 1) - f(x; 0) whatever the flavour (RMSNorm, Gemma's
    1 + w, LayerNorm with bias), and the gradient is the output gradient times h, summed over
    everything but the row and the last axis.
    """
    rows = batch.shape[0]
    if inputs.shape[0] != rows or output_gradient.shape != inputs.shape:
        raise Unsupported(f"a norm over {tuple(inputs.shape)}, whose first axis is not the rows")
    names = [name for name, _ in module.named_parameters(recurse=False)]
    zeros = {n: torch.zeros_like(module.get_parameter(n), dtype=torch.float32) for n in names}
    wide = inputs.detach().float()
    base = functional_call(module, zeros, (wide,))
    for name in names:
        ones = {**zeros, name: torch.ones_like(zeros[name])}
        slope = functional_call(module, ones, (wide,)) - base
        per_row = (output_gradient.float() * slope).reshape(rows, -1, inputs.shape[-1]).sum(1)
        yield name, VectorContribution(by_prompt_rows(per_row, batch))


def by_prompt_rows(values_NX: Tensor, batch: Batch) -> Tensor:
    """Sum a value a row over each prompt's rows -> [P, X]."""
    padded = torch.cat([values_NX, torch.zeros_like(values_NX[:1])])
    return padded[batch.rows_PK].sum(1)


def rule_for(module: nn.Module) -> LayerRule | None:
    """Return the rule of a layer, None where there is none.

    A subclass with a forward of its own is not what it inherits from, so it has no rule, but for
    the scaled embedding, whose only difference is a factor.
    """
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return linear_rule
    if isinstance(module, Conv1D) and forward is Conv1D.forward:
        return conv1d_rule
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.sparse and not module.scale_grad_by_freq
        known = forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return embedding_rule if plain and known else None
    own = list(module.parameters(recurse=False))
    if "Norm" in type(module).__name__ and own and all(p.dim() == 1 for p in own):
        return elementwise_rule
    return None
