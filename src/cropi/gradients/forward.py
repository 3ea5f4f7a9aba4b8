"""One batch through a model: its inputs, its logits where needed, and their gradient.

Also the states that a model is put into meanwhile (evaluation mode, frozen weights, gradient
checkpointing, float32), each of which is undone afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cropi.errors import InputError
from cropi.gradients import Unsupported
from cropi.gradients.attention import additive_mask, supports_block_masks, text_config
from cropi.gradients.bounds import group_weights
from cropi.gradients.collation import PromptBatch
from cropi.gradients.objective import sum_over_equals
from cropi.gradients.pass_record import PassRecord
from cropi.gradients.ranks import is_sharded, reshard
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RolloutGroup

CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of logits that are widened to fp32 at once; on a CPU they should stay in its cache."""

MAX_FLOAT32_PARAMETERS = 4_000_000_000
"""Parameters above which a half-precision model is not widened to float32."""


def forward_logits(model: nn.Module, batch: PromptBatch) -> Tensor:
    """Logits [1, S, V] at the predicting positions: the head sees no others.

    Raises Unsupported where the head is not fed rows x positions of hidden states.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids_NL,
        "position_ids": batch.position_ids_NL,
        "use_cache": False,
    }
    if batch.mask_N1LL is not None:
        dtype = next(model.parameters()).dtype
        inputs["attention_mask"] = additive_mask(batch.mask_N1LL, dtype)
    with _narrow_head(model, batch):
        logits = model(**inputs).logits
    if logits.shape[:2] != (1, len(batch.predictors_S)):
        raise Unsupported(f"logits of shape {tuple(logits.shape)}: the head is not where expected")
    return logits  # type: ignore[no-any-return]


@contextmanager
def _narrow_head(model: nn.Module, batch: PromptBatch) -> Iterator[None]:
    """Feed the head only the positions that predict a policy token."""

    def narrow(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = inputs
        if hidden.shape[:2] != batch.shape:
            raise Unsupported(f"the head sees {tuple(hidden.shape)}, not rows x positions")
        return (hidden.flatten(0, 1)[batch.predictors_S].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise Unsupported("the model does not name its output embeddings")
    handle = head.register_forward_pre_hook(narrow, prepend=True)
    try:
        yield
    finally:
        handle.remove()


class TokenWeights(Protocol):
    """What the gradients of a batch are weighted sums of."""

    def __call__(self, logp_DT: Tensor, batch: PromptBatch) -> Tensor:
        """The weight of each token's score function, float64 [D, T], from the log-probs."""


@dataclass(frozen=True)
class PromptWeights:
    """The weights that give each prompt the gradient of its objective.

    The `record` notes which prompts are out of range; their weights are zero.
    """

    objective: ObjectiveConfig
    record: PassRecord | None = None

    def __call__(self, logp_DT: Tensor, batch: PromptBatch) -> Tensor:
        """Sum dJ/dlogp over equal responses."""
        logp_RT = usable_logprobs(logp_DT, batch)
        bounded = group_weights(logp_RT, batch.responses, self.objective)
        if self.record is not None:
            self.record.add(batch.index_P, bounded)
        return sum_over_equals(bounded.weights_RT, batch.unique_R, len(logp_DT))


def no_weights(logp_DT: Tensor, batch: PromptBatch) -> Tensor:
    """Zero for every token: the batch gives no gradient, and leaves what was collected as it is."""
    return torch.zeros_like(logp_DT)


def usable_logprobs(logp_DT: Tensor, batch: PromptBatch) -> Tensor:
    """The log-probs [R, T] of usable responses from those of unique ones; not 0 at padding."""
    return logp_DT[batch.unique_R, : batch.responses.mask_RT.shape[1]]


def logits_gradient(logits_SV: Tensor, batch: PromptBatch, weigh: TokenWeights) -> Tensor:
    """dJ/dlogits [S, V]: sum over predicted tokens of weight (onehot - softmax) / temperature.

    Overwrites `logits_SV`, in its dtype: logits are the largest tensors of all, so fp32 copies
    exist for a few rows at a time only.
    """
    logsumexp_S, logp_DT = log_probs(logits_SV, batch)
    weights_DT = weigh(logp_DT, batch)
    weights = weights_DT.flatten() / batch.temperature_S[batch.where_DT.flatten()]
    where, targets = batch.where_DT.flatten(), batch.targets_DT.flatten()
    total_S = weights.new_zeros(len(logits_SV)).index_add(0, where, weights)
    for rows in _row_chunks(logits_SV):
        in_chunk = ((where >= rows.start) & (where < rows.stop)).nonzero().squeeze(1)
        gradient = (
            _scaled(logits_SV, rows, batch)
            .sub_(logsumexp_S[rows, None])
            .exp_()
            .mul_(-total_S[rows, None].float())
        )
        place = (where[in_chunk] - rows.start, targets[in_chunk])
        gradient.index_put_(place, weights[in_chunk].float(), accumulate=True)
        logits_SV[rows] = gradient.to(logits_SV.dtype)
    return logits_SV


def log_probs(logits_SV: Tensor, batch: PromptBatch) -> tuple[Tensor, Tensor]:
    """Normalisers fp32 [S] at the rollouts' temperature; log-probs float64 [D, T], padded."""
    logsumexp_S = torch.empty(len(logits_SV), device=logits_SV.device)
    for rows in _row_chunks(logits_SV):
        logsumexp_S[rows] = torch.logsumexp(_scaled(logits_SV, rows, batch), -1)
    chosen_DT = logits_SV[batch.where_DT, batch.targets_DT].double()
    temperature_DT = batch.temperature_S[batch.where_DT]
    return logsumexp_S, chosen_DT / temperature_DT - logsumexp_S[batch.where_DT]


def _scaled(logits_SV: Tensor, rows: slice, batch: PromptBatch) -> Tensor:
    """An fp32 copy of some rows at the rollouts' temperature."""
    wide = logits_SV[rows].to(torch.float32, copy=True)
    temperature = batch.temperature_S[rows, None]
    return wide if bool((temperature == 1).all()) else wide.div_(temperature)


def _row_chunks(logits_SV: Tensor) -> Iterator[slice]:
    """Slices of rows whose fp32 copy takes at most CHUNK_BYTES."""
    limit = CHUNK_BYTES.get(logits_SV.device.type, 1 << 28)
    step = max(1, limit // (4 * logits_SV.shape[1]))
    for start in range(0, len(logits_SV), step):
        yield slice(start, min(start + step, len(logits_SV)))


def require_fitting(model: nn.Module, groups: Sequence[RolloutGroup]) -> None:
    """Raise InputError naming the first prompt whose rollouts the model cannot have sampled.

    That is a token id without an embedding, or more tokens than the model has positions.
    """
    context = getattr(text_config(model), "max_position_embeddings", None) or math.inf
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    for group in groups:
        largest = max(int(ids.max()) for ids in (group.prompt_ids, *(r.ids for r in group.usable)))
        if largest >= vocabulary:
            raise InputError(
                f"prompt {group.prompt_id} has token id {largest}, and the model has {vocabulary} "
                "token embeddings; score rollouts with the tokenizer and model family that sampled "
                "them"
            )
        longest = len(group.prompt_ids) + max(len(r.ids) for r in group.usable)
        if longest > context:
            raise InputError(
                f"prompt {group.prompt_id} and its longest response have {longest} tokens, and the "
                f"model's context is {context}; drop it, or score with the model that sampled it"
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; each module's previous mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep autograd from computing weight gradients; hooks compute them per prompt."""
    reshard(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        reshard(model)
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(model: Any, enabled: bool) -> Iterator[None]:
    """Recompute each decoder layer's activations in backward instead of storing them.

    Raises InputError for a model whose layers do not support it.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if enabled and not layers:
        raise InputError(
            f"gradient_checkpointing is on, and {type(model).__name__} has no layer that supports "
            "it; turn it off and lower batch_tokens instead"
        )
    before = [dict(vars(layer)) for layer in layers]
    for layer in layers if enabled else []:
        # transformers' own switch would also hook the embeddings and not remove that hook.
        layer.gradient_checkpointing, layer.training = True, True
        layer._gradient_checkpointing_func = partial(_checkpoint_in_evaluation, layer)
    try:
        yield
    finally:
        for layer, attributes in zip(layers, before, strict=True) if enabled else []:
            layer.training = False
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                vars(layer).pop(name, None)
                if name in attributes:
                    setattr(layer, name, attributes[name])


def _checkpoint_in_evaluation(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """Checkpoint a layer, in evaluation mode: its training flag only enables checkpointing."""

    def evaluated(*again: Any) -> Any:
        layer.training = False
        try:
            return forward(*again)
        finally:
            layer.training = True

    return checkpoint(evaluated, *inputs, use_reentrant=False)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[bool]:
    """Compute in float32 where possible; yields whether it is.

    Converting half precision to float32 and back is lossless, and accelerate's mixed precision is
    off meanwhile. Quantised, sharded or very large weights, and attention that does not support
    float32 (flash attention), are left as they are.
    """
    half = (torch.bfloat16, torch.float16)
    converted = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in half]
    quantised = any(p.dtype.itemsize < 4 and p.dtype not in half for p in model.parameters())
    too_large = sum(t.numel() for t in converted) > MAX_FLOAT32_PARAMETERS
    fixed = quantised or too_large or is_sharded(model) or not supports_block_masks(model)
    if converted and fixed:
        yield False
        return
    dtypes = [t.dtype for t in converted]
    try:
        for tensor in converted:
            tensor.data = tensor.data.float()
        with _without_autocast(model):
            yield True
    finally:
        for tensor, dtype in zip(converted, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Call the forward that accelerate has wrapped in its autocast, if it has."""
    attributes = vars(model)
    wrapped, plain = attributes.get("forward"), attributes.get("_original_forward")
    if wrapped is None or plain is None:
        yield
        return
    model.forward = plain
    try:
        yield
    finally:
        model.forward = wrapped
