"""Settings of when and how accuracy is measured."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from cropi.rollouts.settings import EngineChoice
from cropi.schema import TEMPERATURES
from cropi.settings import Count, Fraction, Section


class EvaluationConfig(Section):
    """When and how accuracy is measured."""

    every: Count = Field(30, description="steps between evaluations")
    responses: Count = Field(
        1, description="responses per prompt; 1 with temperature 0 is greedy decoding"
    )
    temperature: Annotated[float, Field(ge=0, le=TEMPERATURES[1])] = Field(
        0.0, description="sampling temperature; 0: greedy"
    )
    top_p: Fraction = Field(
        1.0, description="sample from the most likely tokens with this total probability; 1: all"
    )
    k: list[Count] = Field(default_factory=lambda: [1], min_length=1, description="the k of pass@k")
    max_new_tokens: Count | None = Field(
        None, description="longest response; default: as the rollouts"
    )
    engine: EngineChoice | None = Field(
        None, description="what samples the responses; default: as the rollouts"
    )
    targeted: list[str] | None = Field(
        None,
        description="test sets that count as targeted; default: those named as a validation set",
    )

    @property
    def result_settings(self) -> dict[str, Any]:
        """The settings that decide results, as plain values."""
        engine = {} if self.engine is None else {"engine": self.engine.result_settings}
        return {**self.model_dump(exclude={"engine"}), **engine}

    @model_validator(mode="after")
    def _responses_suffice(self) -> EvaluationConfig:
        if max(self.k) > self.responses:
            raise ValueError(
                f"pass@{max(self.k)} needs responses >= {max(self.k)}, got responses "
                f"{self.responses}; raise responses or lower k"
            )
        if self.responses > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.responses} greedy responses are all the same; set evaluation.temperature "
                "above 0, or responses to 1"
            )
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError(
                f"top_p {self.top_p} has no effect on greedy decoding; set evaluation.temperature "
                "above 0, or remove it"
            )
        return self
