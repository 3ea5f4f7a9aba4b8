"""Settings of which prompts a stage trains on."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cropi.plugins import Choice
from cropi.settings import Fraction, Section

SCORES_ALONE = "ranking"
"""The strategy that needs nothing but scores."""


class StrategyChoice(Choice):
    """How prompts are chosen, with the strategy's settings."""

    kind: ClassVar[str] = "strategy"
    default: ClassVar[str] = "cropi"


class SelectionConfig(Section):
    """Which prompts a stage trains on."""

    strategy: StrategyChoice = Field(
        default_factory=StrategyChoice.of, description="how prompts are chosen"
    )
    ratio: Fraction = Field(
        0.1,
        description="share of the whole pool; cropi selects fewer prompts if fewer help, and more "
        "if more help and a stage would visit each more than twice",
    )
