"""From settings to a scorer: the one place where the config meets `influence.py`."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from cropi.config import InfluenceConfig, ObjectiveConfig
from cropi.gradients.extractor import GradientExtractor
from cropi.influence import InfluenceScorer, Progress
from cropi.sketches import SparseSketch


def make_scorer(
    model: Any,
    config: InfluenceConfig,
    seed: int,
    progress: Progress | None = None,
    constant_length: int = 512,
) -> InfluenceScorer:
    """Return a scorer of `model` as the config says.

    `seed` defines the sketch; `constant_length` is Dr.GRPO's divisor where the config has none.
    """
    extractor = GradientExtractor(
        _without_underflow(model),
        _with_length(config.objective, constant_length),
        config.batch_tokens,
        config.share_prefix,
    )
    sketch = None
    if config.method == "sparse":
        sketch = SparseSketch(extractor.shapes, seed, config.sparse_ratio, config.dim)
    return InfluenceScorer(extractor, sketch, config.target, progress)


def _without_underflow(model: Any) -> Any:
    """A float16 model is widened: gradients of long responses fall below float16's range."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        warnings.warn("float16 gradients underflow; computing in float32 instead", stacklevel=3)
        return model.float()
    return model


def _with_length(objective: ObjectiveConfig, length: int) -> ObjectiveConfig:
    if objective.normalisation != "constant" or objective.constant_length:
        return objective
    return objective.model_copy(update={"constant_length": length})
