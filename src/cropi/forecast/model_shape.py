"""The sizes of a model that decide what it costs, from its config alone: no weight is loaded.

The architecture is built on torch's meta device, where a tensor has a shape and no memory, so that
parameters are counted as they will be, tied ones once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cropi.config import RunConfig
from cropi.errors import InputError
from cropi.gradients.extractor import UnmatchedPatternError, trainable_parameters
from cropi.policy.checkpoint_source import locate
from cropi.policy.checkpoints import load_tokenizer_and_configs
from cropi.policy.loading import context_of, quiet_libraries, resolve_dtype
from cropi.training.settings import LoraConfig

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of one number, by the name of its type."""


@dataclass(frozen=True)
class ModelShape:
    """What a policy is made of; counts of parameters include tied ones once.

    `trained` are the parameters that training changes and `compared` those whose gradients
    influence compares; `cached` numbers per token stay in the key-value cache. `bytes` are those of
    one weight while sampling and scoring, `training_bytes` while training.
    """

    name: str
    parameters: int
    trained: int
    compared: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    cached: int
    context: int
    bytes: int
    training_bytes: int


def read_shape(config: RunConfig) -> tuple[ModelShape, Any]:
    """The shape of a run's model, and its tokenizer.

    Raises InputError where there is no such model, or its config cannot be read.
    """
    source = locate(config.model.path, config.model.revision)
    with quiet_libraries(stderr=True):
        tokenizer, model, _ = load_tokenizer_and_configs(source, config.model.trust_remote_code)
        return shape_of(model, config, source.name), tokenizer


def shape_of(model_config: Any, config: RunConfig, name: str) -> ModelShape:
    """The shape of the model that a transformers config describes, under a run's settings."""
    model = _weightless(model_config, name)
    text = model_config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    hidden = int(text.hidden_size)
    adapters = _adapters(model, config.training.lora)
    return ModelShape(
        name=name,
        parameters=parameters,
        trained=parameters if adapters is None else adapters,
        compared=_compared(model, config) if adapters is None else adapters,
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(text.vocab_size),
        cached=_cached(text),
        context=context_of(model_config),
        bytes=BYTES[_dtype(config.model.dtype, text)],
        training_bytes=BYTES[_dtype(config.training.dtype, text)],
    )


def _weightless(model_config: Any, name: str) -> Any:
    """The model without memory for its weights. Raises InputError for another kind of model."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model_config)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {name}: its config describes no causal language model that can be sized "
            f"({reason}); give another model.path"
        ) from error


def _compared(model: Any, config: RunConfig) -> int:
    try:
        chosen = trainable_parameters(model, config.influence.parameters)
    except UnmatchedPatternError as error:
        raise InputError(f"influence.parameters: {error}") from error
    return sum(p.numel() for p in chosen.values())


def _cached(text: Any) -> int:
    """Keys and values of one token in all layers."""
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    return 2 * int(text.num_hidden_layers) * shared * width


def _dtype(asked: str, text: Any) -> str:
    if resolve_dtype(asked) != "auto":
        return asked
    given = str(getattr(text, "dtype", None) or "float32").removeprefix("torch.")
    return given if given in BYTES else "float32"


def _adapters(model: Any, lora: LoraConfig | None) -> int | None:
    """Parameters of LoRA's adapters; None without adapters."""
    if lora is None:
        return None
    from torch import nn

    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    chosen = [m for name, m in linear.items() if _has_adapter(name, lora.target_modules)]
    return sum(lora.r * (m.in_features + m.out_features) for m in chosen)


def _has_adapter(name: str, targets: str | list[str]) -> bool:
    """Whether PEFT gives the module an adapter: by the end of its name, or a whole pattern."""
    import re

    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in targets)
