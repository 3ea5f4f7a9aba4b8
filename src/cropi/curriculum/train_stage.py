"""Step 6: train a stage on its selection, evaluate on the way, and write down what it cost."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cropi.curriculum.measure_accuracy import accuracy_note, evaluate, evaluation_cost
from cropi.curriculum.refresh_rollouts import refresh_costs
from cropi.curriculum.session import Session
from cropi.policy.loading import Policy
from cropi.rollouts import write_rollouts
from cropi.schema import Selection, fingerprint
from cropi.store.files import INPUTS_FINGERPRINT, atomic_folder, write_json
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
from cropi.store.run_directory import Row, Stage
from cropi.store.tables import read_selection
from cropi.training import (
    StageOutcome,
    StagePlan,
    find_trainer,
    one_group_per_prompt,
    stage_order,
)
from cropi.training.stage import MAX_SAMPLING_ROUNDS

TOKENS = ("generated_tokens", "prefill_tokens", "trained_tokens")
"""What evaluations and records say of training so far: counts of StageOutcome."""


def train(
    session: Session, stage: Stage, selection: Selection, policy: str, dynamic: bool = False
) -> str:
    """Train from `policy` unless that was done; return the path of the stage's policy.

    `dynamic` replaces groups whose rewards are all equal before they are trained on.
    """
    plan = _plan(session, stage, selection, policy, dynamic)
    inputs_fingerprint = fingerprint(
        session.policy_key(policy),
        [(p.prompt_id, p.answer) for p in plan.prompts],
        session.config.result_settings("training"),
        session.config.result_settings("curriculum"),
        session.config.result_settings("evaluation"),
        plan.seed,
    )
    if stage.recorded().get("inputs_fingerprint") != inputs_fingerprint:
        gc.collect()  # scoring's model should be gone before training needs the memory
        StageRun(session, stage, plan, selection).run(inputs_fingerprint)
    return str(stage.policy)


class StageRun:
    """One stage while it trains: its rows grow with every evaluation."""

    def __init__(
        self, session: Session, stage: Stage, plan: StagePlan, selection: Selection
    ) -> None:
        self.session = session
        self.stage = stage
        self.plan = plan
        self.selection = selection
        self.outcome = StageOutcome()
        self.before = _tokens_before(stage)
        self.rows: list[MetricsRow] = [*self._start_rows()]
        self.evaluated: list[EvaluationRow] = []
        self.accuracy = ""

    def run(self, inputs_fingerprint: str) -> None:
        """Train, then publish metrics and policy; the policy's folder appears last."""
        directory, stage = self.session.directory, self.stage
        with (
            directory.timed("training", stage.arm, stage.index),
            self.session.reporter.phase(f"{stage.title} GRPO", self.plan.steps) as bar,
            atomic_folder(stage.policy) as part,
        ):
            find_trainer(self.session.config.training.engine).train(
                self.plan,
                self.session.judge,
                part,
                self._evaluate if self.session.evaluated else None,
                lambda done, row: bar.update(done, note=self._note(row)),
                self.outcome,
            )
            bar.note = self.accuracy
            self.rows += self._closing_rows()
            record = {
                "inputs_fingerprint": inputs_fingerprint,
                "arm": stage.arm,
                "stage": stage.index,
                **self._tokens(),
                "visited": self.outcome.prompts_sampled,
            }
            write_json(part / stage.record.name, record)
            write_rows(stage.metrics, self.rows)
            self._write_rollouts(inputs_fingerprint)
        self._write_clock()
        directory.gather_metrics()

    def _write_rollouts(self, inputs_fingerprint: str) -> None:
        """Store the groups that training sampled, where its engine reports them."""
        if self.outcome.rollouts:
            write_rollouts(
                self.stage.rollouts("training"),
                one_group_per_prompt(self.outcome.rollouts),
                {INPUTS_FINGERPRINT.decode(): inputs_fingerprint},
            )

    def _evaluate(self, policy: Policy, step: int) -> None:
        with self.session.directory.timed("evaluation", self.stage.arm, self.stage.index):
            found = evaluate(self.session, policy, step)
        self.evaluated += found
        self.rows += self._placed(found)
        self.accuracy = accuracy_note(found)

    def _note(self, row: Row) -> str:
        reward = f"reward {row['reward']:.2f}" if "reward" in row else ""
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
        """A curve begins with the start policy."""
        if self.stage.index > 0:
            return []
        start = read_rows(self.session.directory.start_evaluation)
        return self._placed(start.of(EvaluationRow))

    def _closing_rows(self) -> list[MetricsRow]:
        facts = _facts(self.stage)
        arm, stage = self.stage.arm, self.stage.index
        stage_row = StageRow(
            arm=arm,
            stage=stage,
            steps=self.plan.steps,
            selected=len(self.selection.prompt_ids),
            negative=self.selection.negative,
            notes=[*self.selection.notes, *facts.get("notes", [])],
            targets=facts.get("targets", {}),
            reward_statuses=self.outcome.statuses,
            visited=self.outcome.prompts_sampled,
            uninformative_trained=self.outcome.uninformative_trained,
        )
        log = [
            TrainRow(arm=arm, stage=stage, step=step, values=values)
            for step, values in map(_logged, self.outcome.log)
        ]
        costs = [*refresh_costs(self.stage), *self._costs(facts.get("tokens", 0))]
        return [*log, stage_row, *costs]

    def _costs(self, scoring: int) -> list[CostRow]:
        where = self.stage.arm, self.stage.index
        size, trained = self.session.parameters, self.outcome.trained_tokens
        rows = [
            cost_row(
                "training",
                size,
                *where,
                generated=self.outcome.generated_tokens,
                forward=trained + self.outcome.prefill_tokens,
                backward=trained,
            )
        ]
        if scoring:
            rows.append(cost_row("scoring", size, *where, forward=scoring, backward=scoring))
        if self.evaluated:
            rows.append(evaluation_cost(self.session, self.evaluated, *where))
        return rows

    def _write_clock(self) -> None:
        """Training seconds since the arm began, a row a step."""
        arm, stage, directory = self.stage.arm, self.stage.index, self.session.directory
        earlier = [row.seconds for row in directory.clock(arm) if row.stage < stage]
        start = max(earlier, default=0.0)
        for step, seconds in self.outcome.clock:
            total = round(start + seconds, 3)
            directory.add_timing(ClockRow(arm=arm, stage=stage, step=step, seconds=total))


def _plan(
    session: Session, stage: Stage, selection: Selection, policy: str, dynamic: bool
) -> StagePlan:
    config, training = session.config, session.config.training
    steps, rounds = config.curriculum.steps_per_stage, MAX_SAMPLING_ROUNDS if dynamic else 1
    visits = steps * training.prompts_per_step * rounds
    visited = _visited_before(stage, selection)
    order = stage_order(selection.prompt_ids, visits, session.seed("order"), visited)
    by_id = {p.prompt_id: p for p in session.sets.pool}
    return StagePlan(
        start=policy,
        prompts=[by_id[i] for i in order],
        steps=steps,
        first_step=stage.index * steps,
        horizon=config.curriculum.steps,
        seed=session.seed("training", stage.index),
        model=config.model,
        training=training,
        rollouts=config.rollouts,
        template_kwargs=config.prompts.chat_template_kwargs,
        evaluate_every=config.evaluation.every,
        normalisation=config.influence.objective.normalisation,
        dynamic_sampling=dynamic,
    )


def _logged(row: Row) -> tuple[int, Row]:
    """A row of the trainer's log, taken apart into its step and the rest."""
    return int(row["step"]), {name: value for name, value in row.items() if name != "step"}


def _visited_before(stage: Stage, selection: Selection) -> int:
    """Visits of these prompts by the stages right before this one that had them in this order."""
    visited = 0
    for index in range(stage.index - 1, -1, -1):
        earlier = stage.sibling(index)
        if read_selection(earlier.selection).prompt_ids != selection.prompt_ids:
            break
        visited += int(earlier.recorded()["visited"])
    return visited


def _tokens_before(stage: Stage) -> dict[str, int]:
    if stage.index == 0:
        return dict.fromkeys(TOKENS, 0)
    record = stage.sibling(stage.index - 1).recorded()
    return {name: int(record[name]) for name in TOKENS}


def _facts(stage: Stage) -> dict[str, Any]:
    """What scoring said of this stage; empty where it was not scored."""
    if not stage.influence_facts.exists():
        return {}
    return dict(json.loads(stage.influence_facts.read_text()))
