"""How a model is set while gradients are measured, and set back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cropi.errors import InputError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off while gradients are measured; the former mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep autograd from computing weight gradients; the tap computes them per prompt."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute each decoder layer's activations in backward instead of keeping them.

    Raises InputError for a model whose layers do not offer it.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise InputError(
            f"influence.gradient_checkpointing is on, and {type(model).__name__} has no layer that "
            "supports it; turn it off and lower influence.batch_tokens instead"
        )
    before = [dict(vars(layer)) for layer in layers]
    for layer in layers if wanted else []:
        # transformers' own switch would also hook the embeddings, and leave that behind.
        layer.gradient_checkpointing, layer.training = True, True
        layer._gradient_checkpointing_func = partial(_checkpoint_in_evaluation, layer)
    try:
        yield
    finally:
        for layer, attributes in zip(layers, before, strict=True) if wanted else []:
            layer.training = False
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                vars(layer).pop(name, None)
                if name in attributes:
                    setattr(layer, name, attributes[name])


def _checkpoint_in_evaluation(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """Checkpoint a layer whose training flag is on for this alone: within, it is in eval mode."""

    def evaluated(*again: Any) -> Any:
        layer.training = False
        try:
            return forward(*again)
        finally:
            layer.training = True

    return checkpoint(evaluated, *inputs, use_reentrant=False)
