"""Settings of the loop over stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cropi.settings import Count, Section


class CurriculumConfig(Section):
    """How many stages there are, and what happens between them."""

    stages: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4, description="number of stages: a selection, then training on it"
    )
    steps_per_stage: Count = Field(60, description="optimizer steps of a stage")
    refresh: Literal["never", "validation", "stale", "all"] = Field(
        "never",
        description="rollouts to sample again, from the current policy, before every later stage: "
        "none (paper), the validation sets', those and the pool's stale ones, all",
    )
    keep_checkpoints: Literal["all", "last"] = Field(
        "all",
        description="checkpoints to keep: those of every stage, or only the last one's weights",
    )

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return self.stages * self.steps_per_stage
