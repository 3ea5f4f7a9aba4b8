"""Retrains a run's start policy without blocks of its pool, in a run directory of its own.

Everything is a step of the curriculum (`curriculum.loop.open_curriculum`): prompts, start policy,
rollouts, one scoring, and a stage for every retraining, so that what was stopped continues. Weights
are deleted once a retraining has been evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cropi.config import RunConfig
from cropi.curriculum.loop import Curriculum, open_curriculum
from cropi.curriculum.policies import delete_weights
from cropi.curriculum.run_context import Seeds, needs_of_arm
from cropi.diagnostics.diagnosis_settings import LeaveOutSettings
from cropi.diagnostics.leave_out import LeaveOutReport, leave_out_report, plan_blocks
from cropi.diagnostics.step import StepPlan
from cropi.errors import InputError
from cropi.progress import ProgressReporter
from cropi.schema import InfluenceEstimate, Selection, derive_seed
from cropi.selection.settings import StrategyChoice
from cropi.store.metrics import EvaluationRow, read_rows
from cropi.store.run_directory import Stage

SUFFIX = "-loo"
"""What is appended to a run's name for the folder of its retrainings."""


def measure_leave_out(
    config: RunConfig,
    settings: LeaveOutSettings,
    base: Path | None = None,
    reporter: ProgressReporter | None = None,
) -> LeaveOutReport:
    """Score, retrain on the whole pool and without every block, evaluate, report.

    Raises InputError for a config that cannot be run, or that has no validation set.
    """
    with open_curriculum(experiment_config(config, settings), base, reporter) as curriculum:
        return _LeaveOut(curriculum, settings).run()


def experiment_config(config: RunConfig, settings: LeaveOutSettings) -> RunConfig:
    """The config of the retrainings: one stage, scored once, evaluated where it ends.

    A validation set is evaluated on the test set of its name, or else itself.
    """
    validation, test = config.prompts.validation, config.prompts.test
    if not validation:
        raise InputError(
            "diagnose loo compares with validation sets, and prompts.validation is empty; add one"
        )
    aimed_at = {name: test[name] for name in validation if name in test}
    evaluated = aimed_at if len(aimed_at) == len(validation) else {}
    sections = {
        "prompts": {"test": evaluated},
        "curriculum": {"stages": 1, "steps_per_stage": settings.steps, "refresh": "never"},
        "evaluation": {"every": settings.steps, "targeted": None},
        "selection": {"strategy": StrategyChoice.of("one_shot")},
    }
    changed = {n: getattr(config, n).model_copy(update=new) for n, new in sections.items()}
    return config.model_copy(update={**changed, "baselines": [], "name": config.name + SUFFIX})


class _LeaveOut:
    """One experiment: the curriculum that it is made with, and its settings."""

    def __init__(self, curriculum: Curriculum, settings: LeaveOutSettings) -> None:
        self.curriculum, self.settings = curriculum, settings
        self.steps = curriculum.steps
        self.pool = [prompt.prompt_id for prompt in self.steps.trainer.pool]

    def run(self) -> LeaveOutReport:
        settings, names = self.settings, list(self.curriculum.config.prompts.validation)
        scores = self._scores().scored()
        plans = plan_blocks(scores, names, settings.share, settings.random_blocks, settings.seed)
        whole = [self._accuracy(f"whole-{n}", self.pool, n) for n in range(settings.repeats)]
        without = [self._without(n, plan, scores) for n, plan in enumerate(plans)]
        start = self._start_accuracy()
        return leave_out_report(scores, plans, start, whole, without, settings.steps)

    def _scores(self) -> InfluenceEstimate:
        """The pool's influence under the start policy."""
        curriculum = self.curriculum
        needs = needs_of_arm(curriculum.config, curriculum.config.selection.strategy)
        stage, policy = self._stage("scores"), curriculum.start
        rollouts = self.steps.refresh.rollouts(stage, needs, policy, curriculum.start_rollouts)
        scores = self.steps.scorer.scores(stage, needs, policy, rollouts)
        assert scores is not None, "the strategy scores"
        return scores

    def _without(self, number: int, plan: StepPlan, scores: InfluenceEstimate) -> dict[str, float]:
        left_out = {scores.prompt_ids[place] for place in plan.members}
        remaining = [prompt_id for prompt_id in self.pool if prompt_id not in left_out]
        return self._accuracy(f"without-{number}", remaining)

    def _accuracy(self, arm: str, prompt_ids: Sequence[str], repeat: int = 0) -> dict[str, float]:
        """Accuracy by validation set after training on these prompts; repeats differ in seed."""
        stage, trainer = self._stage(arm), self.steps.trainer
        if repeat:
            again = Seeds(derive_seed(trainer.seeds.run, "again", repeat), trainer.seeds.data)
            trainer = replace(trainer, seeds=again)
        selection = Selection(list(prompt_ids), np.ones(len(prompt_ids)))
        trainer.train(stage, selection, self.curriculum.start)
        delete_weights(self.curriculum.directory.ledger, stage.policy)
        return _accuracies(read_rows(stage.metrics).of_kind(EvaluationRow), self.settings.steps)

    def _start_accuracy(self) -> dict[str, float]:
        rows = read_rows(self.curriculum.directory.start_evaluation)
        return _accuracies(rows.of_kind(EvaluationRow), 0)

    def _stage(self, arm: str) -> Stage:
        return self.curriculum.directory.stages(arm, 1)[0]


def _accuracies(rows: Sequence[EvaluationRow], step: int) -> dict[str, float]:
    """Pass@k of the smallest k, by set, at a step."""
    return {row.set: row.pass_at[min(row.pass_at)] for row in rows if row.step == step}
