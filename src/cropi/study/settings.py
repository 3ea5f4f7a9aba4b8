"""Settings of what a study compares."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from cropi.selection.settings import StrategyChoice
from cropi.settings import Devices, Section
from cropi.text import require_names


class CompareConfig(Section):
    """What `cropi compare` trains, and against what."""

    strategies: list[str | StrategyChoice] = Field(
        default_factory=list,
        description="strategies and variants; default: selection.strategy and the baselines",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0, 1, 2], description="seeds of each strategy"
    )
    baseline: str = Field("full", description="the strategy that the others are compared with")
    threads: Devices | None = Field(
        None,
        description="CPU threads of each run, on which last bits depend; default: OMP_NUM_THREADS, "
        "or the cores divided by the number of jobs that the study begins with",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="name -> dotted settings, e.g. wider: {selection.ratio: 0.25}",
    )

    @field_validator("variants")
    @classmethod
    def _names_of_folders(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        require_names(variants, "a variant")
        return variants
