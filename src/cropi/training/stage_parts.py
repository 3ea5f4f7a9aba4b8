"""A stage that other programs train, cut into parts where it is evaluated.

No program waits while another evaluates: where an evaluation is due, it saves all that training
continues from and ends, this process evaluates with the GPUs to itself, and the next part continues
from there like any stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cropi.policy.checkpoints import rewrite_adapter_base
from cropi.training.stage import (
    OUTCOME_COUNTS,
    EvaluationCallback,
    StageOutcome,
    StagePlan,
    StepProgress,
)
from cropi.training.start_policy import load_start

TrainPart = Callable[[StagePlan, Path, StepProgress], StageOutcome]
"""Trains a part, fills an empty folder with its policy, and says what it did."""


def train_in_parts(
    plan: StagePlan,
    out: Path,
    train_part: TrainPart,
    evaluate: EvaluationCallback | None = None,
    progress: StepProgress | None = None,
    outcome: StageOutcome | None = None,
) -> StageOutcome:
    """Train a stage part by part, evaluating between them, and leave its policy in `out`."""
    outcome = outcome if outcome is not None else StageOutcome()
    out = out.resolve()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the programs need what scoring leaves
    for part, folder in part_folders(plan, out, evaluate is not None):
        step = part.first_step + part.steps
        folder.mkdir(exist_ok=True)
        advance = _shifted(progress, part.first_step - plan.first_step)
        _add(outcome, train_part(part, folder, advance))
        rewrite_adapter_base(folder, folder, Path(part.start))
        if evaluate:
            evaluate(load_start(replace(part, start=str(folder))), step)
        if part.start != plan.start:
            shutil.rmtree(part.start)
    rewrite_adapter_base(out, Path(plan.start), out)  # as an engine leaves it
    return outcome


def part_folders(plan: StagePlan, out: Path, evaluated: bool) -> Iterator[tuple[StagePlan, Path]]:
    """Yield the parts of a stage, each beginning where the one before ended, and their folders."""
    start = plan.start
    for part in stage_parts_of(plan, evaluated):
        step = part.first_step + part.steps
        folder = out if step == plan.first_step + plan.steps else out / f"until-{step}"
        yield replace(part, start=start), folder
        start = str(folder)


def stage_parts_of(plan: StagePlan, evaluated: bool) -> Iterator[StagePlan]:
    """Cut a stage after every step at which it is evaluated."""
    first, end = plan.first_step, plan.first_step + plan.steps
    every = plan.evaluate_every if evaluated else None
    ends = [step for step in range(first + 1, end) if every and step % every == 0]
    size = plan.training.prompts_per_step
    for begin, until in zip([first, *ends], [*ends, end], strict=True):
        prompts = plan.prompts[(begin - first) * size : (until - first) * size]
        yield replace(plan, first_step=begin, steps=until - begin, prompts=prompts)


def _shifted(progress: StepProgress | None, before: int) -> StepProgress:
    return lambda done, row: progress(before + done, row) if progress else None


def _add(outcome: StageOutcome, part: StageOutcome) -> None:
    """Add what a part of the stage did."""
    seconds = outcome.clock[-1][1] if outcome.clock else 0.0
    outcome.log += part.log
    outcome.clock += [(step, seconds + later) for step, later in part.clock]
    outcome.rollouts += part.rollouts
    for name in OUTCOME_COUNTS:
        setattr(outcome, name, getattr(outcome, name) + getattr(part, name))
    for status, count in part.statuses.items():
        outcome.statuses[status] = outcome.statuses.get(status, 0) + count
