"""Settings of how gradients are compared with the validation direction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cropi.gradients.settings import ObjectiveConfig, TargetMemory
from cropi.settings import Count, Section
from cropi.sketches.settings import SketchChoice

FEATURE_SKETCH = "adaptive"
"""The default sketch of stored features; that of scoring, `exact`, would store whole gradients."""


Metric = Literal["cosine", "whitened"]
"""How gradients are compared (docs/method.md)."""


class InfluenceConfig(Section):
    """How gradients are compared with the validation direction."""

    sketch: SketchChoice = Field(
        default_factory=SketchChoice.of, description="what gradients are projected with"
    )
    target: Literal["mean", "unit_mean"] = Field(
        "mean", description="mean of the gradients (paper), or of the unit gradients"
    )
    metric: Metric = Field(
        "cosine",
        description="cosine (paper), or whitened: what the pool's other gradients do not share",
    )
    parameters: list[str] | None = Field(
        None,
        description="patterns of parameter names to compare, such as model.layers.*; default: all",
    )
    precondition: Literal["none", "adam"] = Field(
        "none",
        description="adam: scale target directions as the policy's saved Adam state scales steps",
    )
    target_memory: TargetMemory = Field(
        "fp32",
        description="how target directions are held without a sketch: on the device in fp32 or "
        "bf16, or outside its memory (offload)",
    )
    batch_tokens: Count | None = Field(
        None,
        description="padded tokens in one forward pass; groups that have more are split over "
        "several; default: 16384 on a GPU, 4096 on a CPU",
    )
    share_prefix: bool = Field(True, description="compute a prompt once for all its responses")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in backward: a quarter slower, far less memory"
    )
    objective: ObjectiveConfig = Field(
        default_factory=lambda: ObjectiveConfig(),
        description="the objective that is differentiated",
    )

    @model_validator(mode="after")
    def _memory_of_exact(self) -> InfluenceConfig:
        if self.target_memory != "fp32" and not self.sketch.is_exact:
            raise ValueError(
                f"target_memory {self.target_memory!r} has no effect with the sketch "
                f"{self.sketch.name!r}, whose directions are small; use the sketch exact, or "
                "remove it"
            )
        return self
