"""What a run would start: the programs of every stage's training, with nothing done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cropi.config import RunConfig, resolve_model_path
from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import Seeds, check_settings, first_stage
from cropi.curriculum.starting_point import fitting_prompts
from cropi.errors import InputError
from cropi.progress import ProgressReporter
from cropi.schema import Prompt
from cropi.store.run_directory import RunDirectory
from cropi.training import StagePlan, find_trainer

Command = list[str]


def training_commands(
    config: RunConfig, base: Path | None, reporter: ProgressReporter
) -> Iterator[tuple[str, list[Command]]]:
    """Yield each stage's title and the programs that its training would start, in order.

    What a run learns on its way they cannot hold: a limit on prompts is the longest of the pool.
    Raises InputError for what a run would be refused for before any work, and for an engine that
    starts no programs, or only such as read what a run writes.
    """
    config = resolve_model_path(config, base)
    check_settings(config, base, reporter)
    trainer = find_trainer(config.training.engine)
    if not hasattr(trainer, "commands"):
        raise InputError(
            f"training.engine {config.training.engine.name} has no commands that would work "
            "without a run; see the settings of a run with cropi config show, and its cost with "
            "cropi plan"
        )
    plan = first_stage(config, _pool(config, base))
    trainer.check(plan)
    for title, stage, out in _stages(config, plan):
        yield title, trainer.commands(stage, out, evaluated=bool(config.evaluated))


def _pool(config: RunConfig, base: Path | None) -> Sequence[Prompt]:
    """The pool, as a run would have it."""
    policies = Policies(config.model, config.result_settings("model"))
    policy, seed = policies.reference(config.model.path), Seeds(config.seed, config.data_seed)
    longest = config.longest_response
    return fitting_prompts(config.prompts, policy, seed.of("prompts"), longest, base).pool


def _stages(config: RunConfig, plan: StagePlan) -> Iterator[tuple[str, StagePlan, Path]]:
    """Yield the title, plan and output folder of every stage of every arm."""
    directory = RunDirectory(config.directory)
    seeds = Seeds(config.seed, config.data_seed)
    for strategy in config.strategies:
        start = str(directory.start) if config.warmup.steps else plan.start
        for stage in directory.stages(strategy.slug, config.curriculum.stages):
            first_step, seed = stage.index * plan.steps, seeds.of("training", stage.index)
            out = stage.policy.with_name(f"{stage.policy.name}.part")  # until it is whole
            yield (
                stage.title,
                replace(plan, start=start, first_step=first_step, seed=seed),
                out.absolute(),
            )
            start = str(stage.policy)
