"""A stage trained by the engine of its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cropi.training import StageOutcome, StagePlan, find_trainer
from cropi.verifiers import Judge


def train(plan: StagePlan, judge: Judge, out: Path, **kwargs: Any) -> StageOutcome:
    """Train into a new folder."""
    out.mkdir(parents=True)
    return find_trainer(plan.training.engine).train(plan, judge, out, **kwargs)
