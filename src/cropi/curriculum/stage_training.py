"""Step 6: train a stage on its selection, evaluate on the way, and record what it cost."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cropi.curriculum.evaluator import Evaluator, accuracy_note, evaluation_cost
from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import RunLog, Seeds
from cropi.curriculum.stage_rollouts import refresh_costs
from cropi.curriculum.trackers import selection_values
from cropi.policy.checkpoints import rewrite_adapter_base
from cropi.policy.loading import Policy
from cropi.progress import Bar
from cropi.rollouts import write_rollouts
from cropi.schema import Prompt, Selection
from cropi.store.cached import FINGERPRINT, cached, read_record, stamp
from cropi.store.files import atomic_folder
from cropi.store.metrics import (
    ClockRow,
    CostRow,
    EvaluationRow,
    MetricsRow,
    StageRow,
    TrainRow,
    cost_row,
    read_rows,
    write_rows,
)
from cropi.store.policy_record import write_policy_record
from cropi.store.run_directory import Row, Stage
from cropi.store.tables import read_scores, read_selection
from cropi.text import plural
from cropi.training import StageOutcome, StagePlan, find_trainer, one_group_per_prompt
from cropi.training.stage import ascii_path

TOKENS = ("generated_tokens", "prefill_tokens", "trained_tokens")
"""Counts of a StageOutcome that evaluations and records add up over the stages of an arm."""


@dataclass(frozen=True)
class StageTrainer:
    """Trains the stages of a run.

    `plan` holds what all stages of the run are trained with, as planned for the first one;
    `result_settings` are the settings of training, curriculum and evaluation that decide results.
    """

    pool: Sequence[Prompt]
    plan: StagePlan
    result_settings: Sequence[Mapping[str, Any]]
    evaluator: Evaluator
    policies: Policies
    seeds: Seeds
    log: RunLog

    def train(self, stage: Stage, selection: Selection, policy: str, dynamic: bool = False) -> str:
        """Train from `policy` unless that was done; return the path of the stage's policy.

        `dynamic` replaces groups whose rewards are all equal before they are trained on.
        """
        plan = self._plan(stage, selection, policy, dynamic)
        self._track(stage, selection, plan.first_step)
        inputs = (
            self.policies.key(policy),
            [(p.prompt_id, p.answer) for p in plan.prompts],
            *self.result_settings,
            plan.seed,
        )

        def run(inputs_fingerprint: str) -> None:
            self.policies.reference(policy)  # its weights may have been deleted
            gc.collect()  # scoring's model should be gone before training needs the memory
            run = StageRun(stage, plan, selection, self.evaluator, self.log)
            run.train(inputs_fingerprint, self.policies.parameters)

        def other_files() -> list[Path]:
            sampled = stage.rollouts("training")
            return [stage.metrics, *([sampled] if sampled.exists() else [])]

        trained = cached(stage.policy, inputs, run, self.log.directory.ledger, other_files)
        self.log.trackers.send(read_rows(stage.metrics).rows)
        return str(trained)

    def _track(self, stage: Stage, selection: Selection, step: int) -> None:
        """Report what was selected, before it is trained on."""
        if self.log.trackers.names:
            scores = read_scores(stage.scores) if stage.scores.exists() else None
            values = {"cropi/stage": float(stage.index), **selection_values(selection, scores)}
            self.log.trackers.send_values("selection", step, values)

    def _plan(self, stage: Stage, selection: Selection, policy: str, dynamic: bool) -> StagePlan:
        plan = replace(
            self.plan,
            start=policy,
            first_step=stage.index * self.plan.steps,
            seed=self.seeds.of("training", stage.index),
            dynamic_sampling=dynamic,
            log=self.log.directory.logs / "training.log",
        )
        sampled = _sampled_before(stage, selection)
        order_seed = self.seeds.of("order")
        return plan.with_selection(self.pool, selection.prompt_ids, order_seed, sampled)


class StageRun:
    """One stage while it trains: its rows grow with every evaluation."""

    def __init__(
        self,
        stage: Stage,
        plan: StagePlan,
        selection: Selection,
        evaluator: Evaluator,
        log: RunLog,
    ) -> None:
        self.stage = stage
        self.plan = plan
        self.selection = selection
        self.evaluator = evaluator
        self.log = log
        self.outcome = StageOutcome()
        self.before = _tokens_before(stage)
        self.rows: list[MetricsRow] = [*self._start_rows()]
        self.evaluated: list[EvaluationRow] = []
        self.accuracy = ""

    def train(self, inputs_fingerprint: str, parameters: int) -> None:
        """Train, then publish metrics and policy; the policy's folder appears last."""
        stage, engine = self.stage, self.plan.training.engine
        title = f"{stage.title} {engine.progress_title}"
        self.log.trackers.send(self.rows)
        with (
            self.log.phase(title, "training", stage, self.plan.steps) as bar,
            atomic_folder(stage.policy) as part,
            ascii_path(part) as place,
        ):
            find_trainer(engine).train(
                self.plan,
                self.evaluator.judge,
                place,
                self._evaluate if self.evaluator.sets else None,
                lambda done, row: self._advance(bar, done, row),
                self.outcome,
            )
            chosen = plural(len(self.selection.prompt_ids), "prompt")
            bar.note = f"{chosen}  {self.accuracy}".strip()
            record = {
                FINGERPRINT: inputs_fingerprint,
                "arm": stage.arm,
                "stage": stage.index,
                **self._tokens(),
                "prompts_sampled": self.outcome.prompts_sampled,
            }
            rewrite_adapter_base(part, stage.policy, Path(self.plan.start))
            write_policy_record(part, record)
            self._write_rollouts(inputs_fingerprint)
            write_rows(stage.metrics, [*self.rows, *self._closing_rows(parameters)])
        self._write_clock()

    def _advance(self, bar: Bar, done: int, row: Row) -> None:
        """Show a step, and report it; `row` is the last of the trainer's log."""
        bar.update(done, note=self._note(row))
        if row:
            step, values = _logged(row)
            arm, stage = self.stage.arm, self.stage.index
            self.log.trackers.send([TrainRow(arm=arm, stage=stage, step=step, values=values)])

    def _write_rollouts(self, inputs_fingerprint: str) -> None:
        """Store the groups that training sampled, where its engine reports them."""
        if self.outcome.rollouts:
            groups = one_group_per_prompt(self.outcome.rollouts)
            write_rollouts(self.stage.rollouts("training"), groups, stamp(inputs_fingerprint))

    def _evaluate(self, policy: Policy, step: int) -> None:
        with self.log.directory.timed("evaluation", self.stage.arm, self.stage.index):
            rows = self.evaluator.rows(policy, step)
        self.evaluated += rows
        placed = self._placed(rows)
        self.rows += placed
        self.log.trackers.send(placed)
        self.accuracy = accuracy_note(rows)

    def _note(self, row: Row) -> str:
        reward = f"reward {row['reward']:z.2f}" if "reward" in row else ""
        return f"{reward}  {self.accuracy}"

    def _tokens(self) -> dict[str, int]:
        """Tokens of the arm up to here, rollouts and scoring left out."""
        return {name: self.before[name] + getattr(self.outcome, name) for name in TOKENS}

    def _placed(self, rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
        """Evaluations with their arm and stage, and what training had cost until then."""
        place: dict[str, Any] = {"arm": self.stage.arm, "stage": self.stage.index}
        place |= self._tokens()
        return [replace(row, **place) for row in rows]

    def _start_rows(self) -> list[EvaluationRow]:
        """The start policy's rows, with which every curve begins."""
        if self.stage.index > 0:
            return []
        start = read_rows(self.log.directory.start_evaluation)
        return self._placed(start.of_kind(EvaluationRow))

    def _closing_rows(self, parameters: int) -> list[MetricsRow]:
        facts = read_record(self.stage.influence_facts)  # empty where the stage was not scored
        arm, stage = self.stage.arm, self.stage.index
        log = [
            TrainRow(arm=arm, stage=stage, step=step, values=values)
            for step, values in map(_logged, self.outcome.log)
        ]
        stage_row = StageRow(
            arm=arm,
            stage=stage,
            steps=self.plan.steps,
            selected=len(self.selection.prompt_ids),
            negative=self.selection.negative,
            notes=[*self.selection.notes, *facts.get("notes", [])],
            targets=facts.get("targets", {}),
            reward_statuses=self.outcome.statuses,
            prompts_sampled=self.outcome.prompts_sampled,
            uninformative_trained=self.outcome.uninformative_trained,
        )
        scored, read = (facts.get(each, 0) for each in ("tokens", "forward_tokens"))
        costs = self._costs(parameters, scored, read)
        return [*log, stage_row, *refresh_costs(self.stage), *costs]

    def _costs(self, parameters: int, scored: int, read: int) -> list[CostRow]:
        """The stage's costs; of scoring, `scored` tokens had a backward pass and `read` none."""
        place, trained = (self.stage.arm, self.stage.index), self.outcome.trained_tokens
        rows = [
            cost_row(
                "training",
                parameters,
                *place,
                generated=self.outcome.generated_tokens,
                forward=trained + self.outcome.prefill_tokens,
                backward=trained,
            )
        ]
        if scored + read:
            forward = scored + read
            rows.append(cost_row("scoring", parameters, *place, forward=forward, backward=scored))
        if self.evaluated:
            rows.append(evaluation_cost(self.evaluated, parameters, *place))
        return rows

    def _write_clock(self) -> None:
        """Training seconds since the arm began, one row per step."""
        arm, stage, directory = self.stage.arm, self.stage.index, self.log.directory
        earlier = [row.seconds for row in directory.clock(arm) if row.stage < stage]
        start = max(earlier, default=0.0)
        for step, seconds in self.outcome.clock:
            total = round(start + seconds, 3)
            directory.add_timing(ClockRow(arm=arm, stage=stage, step=step, seconds=total))


def _logged(row: Row) -> tuple[int, Row]:
    """Split a row of the trainer's log into its step and the rest."""
    return int(row["step"]), {name: value for name, value in row.items() if name != "step"}


def _sampled_before(stage: Stage, selection: Selection) -> int:
    """Prompts sampled by the stages right before this one that had the same selection."""
    sampled = 0
    for index in range(stage.index - 1, -1, -1):
        earlier = stage.sibling(index)
        if read_selection(earlier.selection).prompt_ids != selection.prompt_ids:
            break
        sampled += int(earlier.recorded()["prompts_sampled"])
    return sampled


def _tokens_before(stage: Stage) -> dict[str, int]:
    if stage.index == 0:
        return dict.fromkeys(TOKENS, 0)
    record = stage.sibling(stage.index - 1).recorded()
    return {name: int(record[name]) for name in TOKENS}
