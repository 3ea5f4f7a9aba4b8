"""Settings of how rollouts are sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cropi.plugins import Choice
from cropi.schema import Sampling
from cropi.settings import Count, Fraction, Section, Temperature


class EngineChoice(Choice):
    """What samples responses, with its settings."""

    kind: ClassVar[str] = "engine"
    default: ClassVar[str] = "transformers"


class RolloutsConfig(Section):
    """How the behaviour policy is sampled, once."""

    engine: EngineChoice = Field(
        default_factory=EngineChoice.of, description="what samples the responses"
    )
    responses: Annotated[int, Field(ge=2)] = Field(8, description="responses per prompt")
    validation_responses: Annotated[int, Field(ge=2)] | None = Field(
        None, description="responses per validation prompt; default: as `responses`"
    )
    temperature: Temperature = Field(1.0, description="sampling temperature")
    top_p: Fraction = Field(1.0, description="sample from the likeliest tokens of this mass")
    top_k: Annotated[int, Field(ge=0)] = Field(
        0, description="sample from so many of the likeliest tokens; 0: from all"
    )
    max_new_tokens: Count = Field(512, description="longest response, in tokens")

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of a rollout."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)
