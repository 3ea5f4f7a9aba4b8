"""From settings to a scorer: the one place where the config meets `influence.py`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from cropi.config import InfluenceConfig
from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor, UnmatchedPatternError
from cropi.influence.informative import PhaseProgress
from cropi.influence.preconditioner import Preconditioner
from cropi.influence.scorer import Scorer
from cropi.policy.optimizer_state import second_moments
from cropi.sketches import make_sketch


def make_scorer(
    model: Any,
    config: InfluenceConfig,
    seed: int,
    progress: PhaseProgress | None = None,
    constant_length: int = 512,
    checkpoint: Path | None = None,
) -> Scorer:
    """Return a scorer of `model` as the config says.

    `seed` defines the sketch; `constant_length` is Dr.GRPO's divisor where the config has none;
    `checkpoint` is the folder whose Adam state preconditions the directions, where the config asks
    for that. Raises InputError if it has none.
    """
    extractor = _extractor(model, config, constant_length)
    sketch = None
    if config.method != "exact":
        sketch = make_sketch(
            config.method,
            extractor.shapes,
            seed,
            config.dim,
            config.sparse_ratio,
            config.projection,
        )
    adam = None
    if config.precondition == "adam":
        adam = Preconditioner(second_moments(_required(checkpoint), extractor.model))
    return Scorer(extractor, sketch, config.target, progress, config.target_memory, adam)


def _extractor(model: Any, config: InfluenceConfig, constant_length: int) -> GradientExtractor:
    try:
        return GradientExtractor(
            _without_underflow(model),
            config.objective.with_length(constant_length),
            config.batch_tokens,
            config.share_prefix,
            config.gradient_checkpointing,
            config.parameters,
        )
    except UnmatchedPatternError as error:
        raise InputError(f"influence.parameters: {error}") from error


def _required(checkpoint: Path | None) -> Path:
    if checkpoint is None:
        raise InputError(
            "influence.precondition is adam, and the policy is no folder of a training checkpoint; "
            "give one that holds optimizer.pt, or set influence.precondition=none"
        )
    return checkpoint


def _without_underflow(model: Any) -> Any:
    """A float16 model is widened: gradients of long responses fall below float16's range."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        warnings.warn("float16 gradients underflow; computing in float32 instead", stacklevel=4)
        return model.float()
    return model
