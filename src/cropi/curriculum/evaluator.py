"""Accuracy on the test sets: once for the start policy, then at the training steps that are due."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import RunLog
from cropi.evaluation.pass_at_k import EvaluationSets, evaluate
from cropi.evaluation.settings import EvaluationConfig
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt
from cropi.store.cached import cached
from cropi.store.metrics import CostRow, EvaluationRow, cost_row, read_rows, write_rows
from cropi.verifiers import Judge


@dataclass
class Evaluator:
    """Measures policies of one run on its evaluated sets, always with the same seed.

    `targeted` names the sets that the validation sets aim at, and `judge_settings` are those of
    the judge that decide rewards.
    """

    sets: Mapping[str, Sequence[Prompt]]
    targeted: Collection[str]
    settings: EvaluationConfig
    rollouts: RolloutsConfig
    template_kwargs: Mapping[str, Any]
    judge: Judge
    judge_settings: Mapping[str, Any]
    seed: int
    _encoded: EvaluationSets | None = None

    def rows(self, policy: Policy | PolicyRef, step: int) -> list[EvaluationRow]:
        """Evaluate every set; return metrics rows without their place in an arm."""
        sets = self._encoded_once(policy)
        with PolicyRef.of(policy) as reference:
            results = evaluate(
                reference,
                sets,
                self.settings,
                rollouts=self.rollouts,
                verifier=self.judge,
                seed=self.seed,
            )
        return [
            EvaluationRow(
                step=step,
                set=result.set,
                targeted=result.set in self.targeted,
                prompts=result.prompts,
                pass_at=result.pass_at,
                statuses=result.statuses,
                sampled_tokens=result.tokens,
                prompt_tokens=sets.prompt_tokens(result.set) * self.settings.responses,
            )
            for result in results
        ]

    def inputs(self, policy_key: str) -> tuple[Any, ...]:
        """Return everything that determines the rows of a policy."""
        return (
            policy_key,
            {
                name: [(p.prompt_id, p.content, p.answer, p.source) for p in prompts]
                for name, prompts in self.sets.items()
            },
            sorted(self.targeted),
            self.settings.result_settings,
            self.rollouts.result_settings,
            self.judge_settings,
            self.template_kwargs,
            self.seed,
        )

    def _encoded_once(self, policy: Policy | PolicyRef) -> EvaluationSets:
        """The sets, encoded once per run: every policy of a run has the same tokenizer."""
        if self._encoded is None:
            self._encoded = EvaluationSets.prepare(
                policy.tokenizer, self.sets, self.template_kwargs
            )
        return self._encoded


def evaluate_start(evaluator: Evaluator, start: str, policies: Policies, log: RunLog) -> None:
    """Measure the start policy once, for all arms."""
    out = log.directory.start_evaluation
    if not evaluator.sets:
        return

    def measure(_: str) -> None:
        with log.phase("start accuracy", "evaluation") as bar:
            rows = evaluator.rows(policies.reference(start), step=0)
            write_rows(out, rows)
            bar.note = accuracy_note(rows)

    cached(out, evaluator.inputs(policies.key(start)), measure, log.directory.ledger)


def start_evaluation_costs(log: RunLog, parameters: int) -> list[CostRow]:
    """Return the cost of the start policy's evaluation, none if there was none."""
    rows = read_rows(log.directory.start_evaluation).of_kind(EvaluationRow)
    return [evaluation_cost(rows, parameters)] if rows else []


def evaluation_cost(
    rows: Sequence[EvaluationRow], parameters: int, arm: str = "", stage: int | None = None
) -> CostRow:
    """Return the cost of evaluations: what was sampled, and each prompt's prefill."""
    return cost_row(
        "evaluation",
        parameters,
        arm,
        stage,
        generated=sum(row.sampled_tokens for row in rows),
        forward=sum(row.prompt_tokens for row in rows),
    )


def accuracy_note(rows: Sequence[EvaluationRow]) -> str:
    """Return mean accuracy over targeted and untargeted sets, as text."""
    parts = []
    for label, wanted in (("targeted", True), ("untargeted", False)):
        values = [next(iter(r.pass_at.values())) for r in rows if r.targeted is wanted]
        if values:
            parts.append(f"{label} {np.mean(values):.1%}")
    return "  ".join(parts)
