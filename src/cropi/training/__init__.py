"""Training: GRPO on a selection, one stage at a time, one file an engine."""

from cropi.training.base import StageOutcome, StagePlan, Trainer, find_trainer
from cropi.training.order import stage_order

__all__ = ["StageOutcome", "StagePlan", "Trainer", "find_trainer", "stage_order"]
