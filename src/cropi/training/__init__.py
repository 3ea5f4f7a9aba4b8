"""Training: GRPO on a selection, one stage at a time; one file per engine in `engines`."""

from cropi.training.checked_trainer import find_trainer
from cropi.training.single_stage import train
from cropi.training.stage import (
    StageOutcome,
    StagePlan,
    Trainer,
    one_group_per_prompt,
    stage_order,
)

__all__ = [
    "StageOutcome",
    "StagePlan",
    "Trainer",
    "find_trainer",
    "one_group_per_prompt",
    "stage_order",
    "train",
]
