"""Training engines by name; what a user's leaves is checked before a stage is published.

A stage that left no policy, one of another shape or with NaN among its weights would be the start
of the next one; counts and rows that no file can hold would end the run after the training is paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropi.errors import InputError
from cropi.plugin_calls import PluginError, calling, is_users
from cropi.plugins import KINDS, find_plugin
from cropi.schema import RolloutGroup
from cropi.text import shown
from cropi.training.settings import TrainerChoice
from cropi.training.stage import (
    OUTCOME_COUNTS,
    EvaluationCallback,
    Row,
    StageOutcome,
    StagePlan,
    StepProgress,
    Trainer,
    reraise_disk_errors,
)

if TYPE_CHECKING:
    from cropi.policy.loading import Policy
    from cropi.verifiers import Judge

TITLE = KINDS["trainer"].title


def find_trainer(choice: TrainerChoice | str) -> Trainer:
    """Return the chosen training engine, with its settings; a name alone means the defaults.

    Raises InputError if there is none of that name, or what is there is not a trainer.
    """
    if isinstance(choice, str):
        choice = TrainerChoice.of(choice)
    target = find_plugin("trainer", choice.name)
    trainer = choice.build() if _is_factory(target) else target
    if not all(callable(getattr(trainer, method, None)) for method in ("check", "train")):
        raise InputError(
            f"training engine {choice.name!r} is not a trainer; it needs check(plan) and "
            "train(plan, judge, out, evaluate, progress, outcome)"
        )
    return CheckedTrainer(choice.name, trainer) if is_users(choice.name) else trainer


def _is_factory(target: Any) -> bool:
    return isinstance(target, type) or hasattr(target, "Settings")


@dataclass(frozen=True)
class CheckedTrainer:
    """A user's training engine by its resolved name.

    Whatever is wrong with what it does is a PluginError.
    """

    name: str
    trainer: Trainer

    def __getattr__(self, name: str) -> Any:
        """What else it may have: `commands`."""
        if name.startswith("_") or name == "trainer":
            raise AttributeError(name)
        return getattr(self.trainer, name)

    def check(self, plan: StagePlan) -> list[str]:
        """Its warnings."""
        with calling(TITLE, self.name, "check"):
            warnings: Any = self.trainer.check(plan)
        if not isinstance(warnings, list | tuple) or not all(isinstance(w, str) for w in warnings):
            raise self._error(
                "check", f"returned {shown(warnings, 60)}", "it must return a list of warnings"
            )
        return list(warnings)

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: EvaluationCallback | None = None,
        progress: StepProgress | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        """Train, and return the outcome in plain types; `out` holds a policy of the same shape."""
        from cropi.training.trained_weights import require_trained  # loads torch

        outcome = outcome if outcome is not None else StageOutcome()
        evaluating = self._evaluating(plan, evaluate) if evaluate else None
        advancing = self._advancing(plan, progress) if progress else None
        with calling(TITLE, self.name, "train"), reraise_disk_errors():
            returned = self.trainer.train(plan, judge, out, evaluating, advancing, outcome)
        self._take(outcome, returned)
        self._make_plain(outcome, plan)
        try:
            require_trained(out, plan)
        except InputError as error:
            raise self._error("train", f"left in its folder {error}", "") from error
        return outcome

    def _evaluating(self, plan: StagePlan, evaluate: EvaluationCallback) -> EvaluationCallback:
        def checked(policy: Policy, step: int) -> None:
            self._require_step(plan, step, "evaluate(policy, step)")
            evaluate(policy, int(step))

        return checked

    def _advancing(self, plan: StagePlan, progress: StepProgress) -> StepProgress:
        def checked(done: int, row: Row) -> None:
            if not isinstance(done, int | np.integer) or not 0 <= done <= plan.steps:
                raise self._error(
                    "train",
                    f"called progress(done, row) with done = {shown(done, 60)}",
                    f"give the steps of this stage that are done, up to {plan.steps}",
                )
            progress(int(done), self._row(plan, row) if row else {})

        return checked

    def _take(self, outcome: StageOutcome, returned: Any) -> None:
        """Fill in what was returned where that is another outcome than the one to fill."""
        if isinstance(returned, StageOutcome):
            for each in fields(StageOutcome):
                setattr(outcome, each.name, getattr(returned, each.name))
        elif returned is not None:
            raise self._error(
                "train", f"returned {shown(returned, 60)}", "it must return the outcome"
            )

    def _make_plain(self, outcome: StageOutcome, plan: StagePlan) -> None:
        """Give the outcome the types that its files hold."""
        outcome.log = [self._row(plan, row) for row in self._list("log", outcome.log)]
        outcome.clock = [self._time(plan, each) for each in self._list("clock", outcome.clock)]
        for name in OUTCOME_COUNTS:
            setattr(outcome, name, self._count(name, getattr(outcome, name)))
        if outcome.prompts_sampled > len(plan.prompts):
            raise self._error(
                "train",
                f"sampled {outcome.prompts_sampled} of the plan's {len(plan.prompts)} prompts "
                "(outcome.prompts_sampled)",
                "count the entries of plan.prompts that were sampled",
            )
        if not isinstance(outcome.statuses, Mapping):
            raise self._error("train", f"left outcome.statuses {shown(outcome.statuses, 60)}")
        outcome.statuses = {
            str(status): self._count(f"statuses[{status!r}]", count)
            for status, count in outcome.statuses.items()
        }
        outcome.rollouts = self._rollouts(self._list("rollouts", outcome.rollouts), plan)

    def _rollouts(self, groups: list[Any], plan: StagePlan) -> list[RolloutGroup]:
        """The groups that it sampled, of prompts of the stage, as a file can hold them."""
        from cropi.rollouts.rollout_file import require_storable  # loads pyarrow

        prompts = {prompt.prompt_id for prompt in plan.prompts}
        for group in groups:
            if not isinstance(group, RolloutGroup):
                raise self._error(
                    "train", f"left {shown(group, 60)} in outcome.rollouts", "give RolloutGroups"
                )
            if group.prompt_id not in prompts:
                raise self._error(
                    "train",
                    f"left a group of the prompt {shown(group.prompt_id, 60)} in outcome.rollouts, "
                    "which the stage does not train on",
                    "give groups of plan.prompts",
                )
        try:
            require_storable(groups, "outcome.rollouts")
        except InputError as error:
            raise self._error("train", f"left unusable rollouts: {error}") from error
        return groups

    def _row(self, plan: StagePlan, row: Any) -> Row:
        if not isinstance(row, Mapping) or "step" not in row:
            raise self._error(
                "train", f"logged {shown(row, 60)}", "every row must be a dict with its step"
            )
        self._require_step(plan, row["step"], "the row of a log")
        return {str(name): self._value(str(name), value) for name, value in row.items()}

    def _value(self, name: str, value: Any) -> Any:
        """A value of a log's row as JSON has it; tensors of one number are numbers."""
        if hasattr(value, "item") and getattr(value, "size", None) is not None:
            with suppress(ValueError, RuntimeError):  # of more than one number
                value = value.item()
        if value is not None and not isinstance(value, bool | int | float | str):
            raise self._error("train", f"logged {name} = {shown(value, 60)}", "log numbers")
        return value

    def _require_step(self, plan: StagePlan, step: Any, where: str) -> None:
        first, last = plan.first_step + 1, plan.first_step + plan.steps
        whole = isinstance(step, int | np.integer) and not isinstance(step, bool)
        if not whole or not first <= step <= last:
            raise self._error(
                "train",
                f"gave {where} the step {shown(step, 60)}",
                f"give steps of this stage, {first} to {last}, counted over all stages",
            )

    def _time(self, plan: StagePlan, row: Any) -> tuple[int, float]:
        pair = isinstance(row, tuple | list) and len(row) == 2
        if not pair or not isinstance(row[1], int | float | np.number) or not row[1] >= 0:
            raise self._error(
                "train", f"left {shown(row, 60)} in outcome.clock", "give (step, seconds)"
            )
        self._require_step(plan, row[0], "outcome.clock")
        return int(row[0]), float(row[1])

    def _count(self, name: str, value: Any) -> int:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
            raise self._error(
                "train", f"left outcome.{name} = {shown(value, 60)}", "give a whole number from 0"
            )
        return int(value)

    def _list(self, name: str, values: Any) -> list[Any]:
        if not isinstance(values, list | tuple):
            raise self._error("train", f"left outcome.{name} = {shown(values, 60)}", "give a list")
        return list(values)

    def _error(self, function: str, problem: str, remedy: str = "correct it") -> PluginError:
        return PluginError.of(TITLE, self.name, function, problem, remedy)
