"""One batch through a model: what it is fed, its logits where they are needed, their gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients.collation import Batch
from cropi.gradients.layers import Unsupported
from cropi.gradients.objective import sum_over_equals, token_weights
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RolloutGroup

CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of logits that are widened to fp32 at once; on a CPU they should stay in its cache."""


def forward_logits(model: nn.Module, batch: Batch) -> Tensor:
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
        mask = torch.zeros(batch.mask_N1LL.shape, dtype=dtype, device=batch.input_ids_NL.device)
        mask.masked_fill_(~batch.mask_N1LL, torch.finfo(dtype).min)
        inputs["attention_mask"] = mask
    with narrowed(model, batch):
        logits = model(**inputs).logits
    if logits.shape[:2] != (1, len(batch.predictors_S)):
        raise Unsupported(f"logits of shape {tuple(logits.shape)}: the head is not where expected")
    return logits  # type: ignore[no-any-return]


@contextmanager
def narrowed(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Let the head see only the positions that predict a response token."""

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


def logits_gradient(logits_SV: Tensor, batch: Batch, objective: ObjectiveConfig) -> Tensor:
    """dJ/dlogits [S, V]: sum over predicted tokens of weight (onehot - softmax) / temperature.

    Overwrites `logits_SV`, in its dtype: logits are the largest tensors of all, so fp32 copies
    exist for a few rows at a time only.
    """
    logsumexp_S, logp_DT = log_probs(logits_SV, batch)
    longest = batch.responses.mask_RT.shape[1]
    weights_RT = token_weights(logp_DT[batch.which_R, :longest], batch.responses, objective)
    weights_DT = sum_over_equals(weights_RT, batch.which_R, len(logp_DT))
    weights = weights_DT.flatten() / batch.temperature_S[batch.where_DT.flatten()]
    where, targets = batch.where_DT.flatten(), batch.targets_DT.flatten()
    total_S = weights.new_zeros(len(logits_SV)).index_add(0, where, weights)
    for rows in _few_rows(logits_SV):
        own = ((where >= rows.start) & (where < rows.stop)).nonzero().squeeze(1)
        gradient = (
            _scaled(logits_SV, rows, batch)
            .sub_(logsumexp_S[rows, None])
            .exp_()
            .mul_(-total_S[rows, None].float())
        )
        place = (where[own] - rows.start, targets[own])
        gradient.index_put_(place, weights[own].float(), accumulate=True)
        logits_SV[rows] = gradient.to(logits_SV.dtype)
    return logits_SV


def log_probs(logits_SV: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Normalisers fp32 [S] at the rollouts' temperature; log-probs float64 [D, T], padded."""
    logsumexp_S = torch.empty(len(logits_SV), device=logits_SV.device)
    for rows in _few_rows(logits_SV):
        logsumexp_S[rows] = torch.logsumexp(_scaled(logits_SV, rows, batch), -1)
    chosen_DT = logits_SV[batch.where_DT, batch.targets_DT].double()
    temperature_DT = batch.temperature_S[batch.where_DT]
    return logsumexp_S, chosen_DT / temperature_DT - logsumexp_S[batch.where_DT]


def _scaled(logits_SV: Tensor, rows: slice, batch: Batch) -> Tensor:
    """An fp32 copy of some rows at the rollouts' temperature."""
    wide = logits_SV[rows].to(torch.float32, copy=True)
    temperature = batch.temperature_S[rows, None]
    return wide if bool((temperature == 1).all()) else wide.div_(temperature)


def _few_rows(logits_SV: Tensor) -> Iterator[slice]:
    """Slices of rows whose fp32 copy takes at most CHUNK_BYTES."""
    limit = CHUNK_BYTES.get(logits_SV.device.type, 1 << 28)
    step = max(1, limit // (4 * logits_SV.shape[1]))
    for start in range(0, len(logits_SV), step):
        yield slice(start, min(start + step, len(logits_SV)))


def text_config(model: nn.Module) -> Any:
    """The config of the language model, within a multimodal one too; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def attention_window(config: Any) -> float:
    """Positions that every layer sees, where some layers attend locally."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=math.inf)


def takes_block_masks(model: nn.Module) -> bool:
    """Whether the attention in use reads a mask of who sees whom; flash attention does not."""
    implementation = getattr(text_config(model), "_attn_implementation", None)
    return implementation in (None, "sdpa", "eager")


def require_fitting(model: nn.Module, groups: Sequence[RolloutGroup]) -> None:
    """Raise InputError naming the first prompt whose rollouts the model cannot have sampled.

    That is a token id without an embedding, or more tokens than the model has positions.
    """
    context = getattr(text_config(model), "max_position_embeddings", None) or math.inf
    known = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    for group in groups:
        largest = max(int(ids.max()) for ids in (group.prompt_ids, *(r.ids for r in group.usable)))
        if largest >= known:
            raise InputError(
                f"prompt {group.prompt_id} has token id {largest}, and the model has {known} token "
                "embeddings; score rollouts with the tokenizer and model family that sampled them"
            )
        longest = len(group.prompt_ids) + max(len(r.ids) for r in group.usable)
        if longest > context:
            raise InputError(
                f"prompt {group.prompt_id} and its longest response have {longest} tokens, and the "
                f"model's context is {context}; drop it, or score with the model that sampled it"
            )
