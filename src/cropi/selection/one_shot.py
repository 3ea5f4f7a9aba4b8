"""The paper's one-shot baseline: influence under the first policy only, no curriculum."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cropi.plugins import plugin
from cropi.schema import Selection
from cropi.selection.fusion import fuse
from cropi.selection.strategy import Scoring, SelectionContext
from cropi.settings import Section


@plugin("strategy", "one_shot")
class OneShotInfluence:
    """The start policy's scores decide every stage, as published: none of our options."""

    class Settings(Section):
        """How the rankings of several validation sets become one."""

        fusion_constant: Annotated[float, Field(ge=0)] = Field(
            0.0, description="c in 1/(c + rank); 0 in the paper"
        )

    scoring: Scoring = "once"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def select(self, context: SelectionContext) -> Selection:
        """Fuse the rankings of all validation sets."""
        assert context.scores is not None, "one_shot asked for scores and got none"
        return fuse(context.scores, context.count, self.settings.fusion_constant)
