"""The engine `transformers`: the policy's own `generate`, in this process.

Its implementation is `cropi.rollouts.transformers_engine`, which loads torch: this file does not,
because settings are read where nothing is sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cropi.plugins import plugin
from cropi.rollouts.settings import EngineSettings
from cropi.settings import Count

if TYPE_CHECKING:
    from cropi.policy.reference import PolicyRef
    from cropi.rollouts.engines.engine import RolloutEngine


class TransformersSettings(EngineSettings):
    """Settings of the engine `transformers`."""

    batch_size: Count = Field(256, description="responses generated at once")


@plugin("engine", "transformers", TransformersSettings)
def transformers(settings: TransformersSettings, policy: PolicyRef) -> RolloutEngine:
    """Samples from a Hugging Face model."""
    from cropi.rollouts.transformers_engine import TransformersEngine

    return TransformersEngine(policy, settings.batch_size)
