"""Step 0: everything about the settings that can be known before any work is done."""

from __future__ import annotations

from pathlib import Path

from cropi.config import RunConfig, check_files
from cropi.curriculum.session import needs_in
from cropi.progress import ProgressReporter
from cropi.store.tables import require_set_names
from cropi.training import StagePlan, find_trainer


def check_settings(config: RunConfig, base: Path | None, reporter: ProgressReporter) -> None:
    """Find every plug-in and try the trainer's settings.

    Raises InputError for a file, strategy, engine or training setting that cannot be used.
    """
    with reporter.phase("settings"):
        check_files(config, base)
        require_set_names(config.prompts.validation)
        needs = [needs_in(config, name) for name in config.strategies]
        dynamic = any(each.dynamic_sampling for each in needs)
        doubts = find_trainer(config.training.engine).check(_plan(config, dynamic))
    if any(each.scoring != "never" for each in needs):
        for line in doubts:
            reporter.warn(line)


def _plan(config: RunConfig, dynamic: bool) -> StagePlan:
    """The first stage, as far as it is known without prompts."""
    training = config.training
    return StagePlan(
        start=config.model.path,
        prompts=[],
        steps=config.curriculum.steps_per_stage,
        first_step=0,
        horizon=config.curriculum.steps,
        seed=0,
        model=config.model,
        training=training,
        rollouts=config.rollouts,
        template_kwargs=config.prompts.chat_template_kwargs,
        normalisation=config.influence.objective.normalisation,
        dynamic_sampling=dynamic,
    )
