"""Settings of how rollouts are sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cropi.plugins import Choice
from cropi.schema import Sampling
from cropi.settings import Count, Fraction, Section, Temperature

SampledPolicies = Literal["any", "saved", "served"]


class EngineSettings(Section):
    """What the settings of every built-in engine say about it.

    `execution` names the settings that say where and how fast, but not what is sampled. `policies`
    says which policies it samples from: `any`; `saved`, for one in memory is written to disk first;
    or `served`, the one that a server already has.
    """

    execution: ClassVar[frozenset[str]] = frozenset()
    policies: ClassVar[SampledPolicies] = "any"


class EngineChoice(Choice):
    """What samples responses, with its settings."""

    kind: ClassVar[str] = "engine"
    default: ClassVar[str] = "transformers"

    @property
    def policies(self) -> SampledPolicies:
        """Which policies it samples from; a user's own engine is taken to sample from any."""
        policies: SampledPolicies = getattr(self.settings, "policies", "any")
        return policies

    @property
    def result_settings(self) -> Any:
        """The name and those settings that decide what is sampled."""
        values = self.model_dump()
        execution = getattr(self.settings, "execution", ())
        return {k: v for k, v in values.items() if k not in execution} if execution else values

    def logging_to(self, folder: Path) -> EngineChoice:
        """The same choice, its program's log in `folder` unless its settings say where."""
        if getattr(self.settings, "log", "") is not None:
            return self
        settings = self.settings.model_copy(update={"log": str(folder / f"{self.slug}.log")})
        return self.model_copy(update={"settings": settings})


class RolloutsConfig(Section):
    """How responses of the behaviour policy are sampled."""

    engine: EngineChoice = Field(
        default_factory=EngineChoice.of, description="what samples the responses"
    )
    responses: Annotated[int, Field(ge=2)] = Field(8, description="responses per prompt")
    validation_responses: Annotated[int, Field(ge=2)] | None = Field(
        None, description="responses per validation prompt; default: as `responses`"
    )
    temperature: Temperature = Field(1.0, description="sampling temperature")
    top_p: Fraction = Field(
        1.0, description="sample from the most likely tokens with this total probability; 1: all"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(
        0, description="sample from this many of the most likely tokens; 0: all"
    )
    max_new_tokens: Count = Field(512, description="longest response, in tokens")

    @property
    def result_settings(self) -> dict[str, Any]:
        """The settings that decide what is sampled, as plain values."""
        return {**self.model_dump(), "engine": self.engine.result_settings}

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of a rollout."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)
