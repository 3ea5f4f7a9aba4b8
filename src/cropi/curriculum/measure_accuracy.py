"""Accuracy on the test sets: once for the start policy, then at the training steps that are due."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cropi.curriculum.session import Session
from cropi.evaluation.pass_at_k import EvaluationSets
from cropi.policy.loading import Policy
from cropi.rollouts import load_engine
from cropi.schema import Sampling
from cropi.store.metrics import CostRow, EvaluationRow, cost_row, write_rows


def evaluate_start(session: Session, start: str) -> None:
    """Measure the start policy once, for all arms."""
    directory = session.directory
    if directory.start_evaluation.exists() or not session.evaluated:
        return
    with directory.timed("evaluation"), session.reporter.phase("start accuracy") as bar:
        rows = evaluate(session, session.load(start), step=0)
        write_rows(directory.start_evaluation, rows)
        bar.note = accuracy_note(rows)


def evaluate(session: Session, policy: Policy, step: int) -> list[EvaluationRow]:
    """Evaluate every set that is to be; return metrics rows without their place in an arm."""
    config, rollouts = session.config.evaluation, session.config.rollouts
    new_tokens = config.max_new_tokens or rollouts.max_new_tokens
    prepared = _prepared(session, policy)
    lengths = {
        name: sum(map(len, encoded))
        for name, encoded in zip(prepared.names, prepared.encoded, strict=True)
    }
    results = prepared.evaluate(
        load_engine(rollouts.engine, policy),
        session.judge,
        Sampling(config.temperature, config.top_p, 0, new_tokens),
        config.responses,
        config.k,
        session.seed("evaluation"),
        session.config.verifiers.threshold,
    )
    targeted = set(session.config.targeted)
    return [
        EvaluationRow(
            step=step,
            set=result.set,
            targeted=result.set in targeted,
            prompts=result.prompts,
            pass_at=result.pass_at,
            statuses=result.statuses,
            sampled_tokens=result.tokens,
            prompt_tokens=lengths[result.set] * config.responses,
        )
        for result in results
    ]


def evaluation_cost(
    session: Session, rows: Sequence[EvaluationRow], arm: str = "", stage: int | None = None
) -> CostRow:
    """The cost row of evaluations: what was sampled, and each prompt's prefill."""
    return cost_row(
        "evaluation",
        session.parameters,
        arm,
        stage,
        generated=sum(row.sampled_tokens for row in rows),
        forward=sum(row.prompt_tokens for row in rows),
    )


def accuracy_note(rows: Sequence[EvaluationRow]) -> str:
    """Mean accuracy over targeted and untargeted sets, as text."""
    parts = []
    for label, wanted in (("targeted", True), ("untargeted", False)):
        values = [next(iter(r.pass_at.values())) for r in rows if r.targeted is wanted]
        if values:
            parts.append(f"{label} {np.mean(values):.1%}")
    return "  ".join(parts)


def _prepared(session: Session, policy: Policy) -> EvaluationSets:
    """The evaluated sets, encoded once a run: every policy of a run has the same tokenizer."""
    if session.evaluation_sets is None:
        session.evaluation_sets = EvaluationSets.prepare(
            policy.tokenizer, session.evaluated, session.config.prompts.chat_template_kwargs
        )
    return session.evaluation_sets
