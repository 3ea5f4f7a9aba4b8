"""The method: prompts of highest influence under the current policy, fused over targets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.fusion import fuse
from cropi.selection.memory import remembered
from cropi.selection.strategy import Scoring, SelectionContext
from cropi.settings import Section


@plugin("strategy", "cropi")
class Cropi:
    """Influence under each stage's own policy (the paper's curriculum), with our options."""

    class Settings(Section):
        """What goes beyond the paper; 0 everywhere gives the paper's selection."""

        fusion_constant: Annotated[float, Field(ge=0)] = Field(
            0.0, description="c in 1/(c + rank); 0 in the paper"
        )
        noise_floor: Annotated[float, Field(ge=0)] = Field(
            3.0,
            description="leave out prompts whose influence is within this many standard "
            "deviations of noise, down to a fifth of the ratio; 0 (paper) fills the ratio",
        )
        memory: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.5,
            description="weight of earlier stages' influence in a running mean; 0 (paper): none",
        )

    scoring: Scoring = "stage"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.earlier = settings.memory > 0

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        assert context.scores is not None, "cropi asked for scores and got none"
        scores = remembered(context.scores, context.earlier, self.settings.memory)
        constant, floor = self.settings.fusion_constant, self.settings.noise_floor
        return fuse(scores, context.count, constant, floor)
