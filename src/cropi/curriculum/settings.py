"""Settings of the loop over stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cropi.settings import Count, Section


class CurriculumConfig(Section):
    """How many stages there are, and what happens between them."""

    stages: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4, description="selections, each followed by training"
    )
    steps_per_stage: Count = Field(60, description="optimizer steps")
    refresh: Literal["never", "validation", "stale", "all"] = Field(
        "never",
        description="sampled again from the current policy before every later stage: nothing "
        "(paper), validation sets, those and the pool's stale prompts, everything",
    )
    keep_checkpoints: Literal["all", "last"] = Field(
        "all", description="checkpoints to keep: every stage's, or the last one's weights alone"
    )

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return self.stages * self.steps_per_stage
