"""Settings of the objective whose gradients are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cropi.settings import Count, Section

TargetMemory = Literal["fp32", "bf16", "offload"]
"""Where target directions are held: fp32 or bf16 on the device, or fp32 outside its memory."""


class ClipConfig(Section):
    """PPO's clip range around ratio 1."""

    low: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="lowest ratio: 1 - low")
    high: Annotated[float, Field(gt=0)] = Field(0.2, description="highest ratio: 1 + high")


class ObjectiveConfig(Section):
    """The off-policy objective whose gradient is the influence (docs/method.md)."""

    ratio: Literal["token", "sequence", "none"] = Field(
        "token", description="token (paper), sequence (GSPO) or none (REINFORCE)"
    )
    clip: ClipConfig | None = Field(None, description="PPO's clipped minimum; default: no clipping")
    normalisation: Literal["sequence", "token", "constant"] = Field(
        "sequence",
        description="mean per response (GRPO), over a group's tokens (DAPO), constant (Dr.GRPO)",
    )
    constant_length: Count | None = Field(
        None, description="the divisor of `constant`; default: the rollouts' max_new_tokens"
    )
    scale_by_std: bool = Field(True, description="divide advantages by the group's std")
    self_normalised: bool = Field(
        False, description="mean and std of the rewards weighted by the sequence ratio"
    )

    @model_validator(mode="after")
    def _nothing_inert(self) -> ObjectiveConfig:
        if self.clip is not None and self.ratio == "none":
            raise ValueError(
                "clip needs a ratio to clip; set ratio to token or sequence, or remove clip"
            )
        if self.constant_length is not None and self.normalisation != "constant":
            raise ValueError(
                f"constant_length {self.constant_length} has no effect with normalisation "
                f"{self.normalisation!r}; set normalisation to constant, or remove it"
            )
        return self

    @property
    def uses_ratios(self) -> bool:
        """Whether the sampler's log-probs enter at all."""
        return self.ratio != "none" or self.self_normalised

    def with_length(self, length: int) -> ObjectiveConfig:
        """The same, with `length` as the constant divisor if one is needed and not set."""
        if self.normalisation != "constant" or self.constant_length:
            return self
        return self.model_copy(update={"constant_length": length})
