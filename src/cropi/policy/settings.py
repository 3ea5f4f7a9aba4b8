"""Settings of the policy that a run starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cropi.settings import PathText, Section

SplitKind = Literal["fsdp", "tensor"]
"""What several processes divide: weights and prompts, or the work of each layer."""


class ModelConfig(Section):
    """Which policy to start from."""

    path: PathText = Field(
        description="a Hugging Face hub id, a model directory, `pocket` or `smollm2`",
    )
    revision: PathText | None = Field(
        None, description="branch, tag or commit of a hub id; default: the newest"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype for rollouts and gradients; auto: the checkpoint's"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="implementation of attention; default: the model's"
    )
    trust_remote_code: bool = Field(False, description="run Python code from a hub repository")
