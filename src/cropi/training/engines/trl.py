"""The training engine `trl`: TRL's GRPOTrainer, in this process.

Its implementation is `cropi.training.trl_stage`, which loads torch and TRL. This file does not,
because settings are also read where nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cropi.plugins import plugin
from cropi.settings import Section

if TYPE_CHECKING:
    from cropi.training.stage import Trainer


class TrlSettings(Section):
    """Settings of the training engine `trl`."""

    grpo: dict[str, Any] = Field(
        default_factory=dict, description="anything else for TRL's GRPOConfig"
    )


@plugin("trainer", "trl", TrlSettings)
def trl(settings: TrlSettings) -> Trainer:
    """GRPO through TRL, one stage per call."""
    from cropi.training.trl_stage import TrlTrainer

    return TrlTrainer(settings)
