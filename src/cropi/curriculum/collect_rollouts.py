"""Step 3: sample and judge responses of the start policy, once for all stages and arms."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropi.curriculum.measure_accuracy import evaluation_cost
from cropi.curriculum.session import Session
from cropi.rollouts import RolloutEngine, load_engine
from cropi.rollouts.collect import collect
from cropi.schema import Prompt, RolloutGroup, fingerprint
from cropi.store.files import is_current
from cropi.store.metrics import CostRow, EvaluationRow, cost_row, read_rows, write_rows


@dataclasses.dataclass(frozen=True)
class Collection:
    """Rollouts of one set: the pool, or a validation set."""

    kind: str
    name: str
    prompts: list[Prompt]
    responses: int


def collect_rollouts(session: Session, start: str) -> None:
    """Collect what is missing, and say how informative the pool is."""
    key = session.policy_key(start)
    missing = [
        c
        for c in collections(session)
        if not is_current(
            session.directory.rollouts(c.kind, c.name), inputs_fingerprint(session, c, key)
        )
    ]
    if missing:
        sampler = Sampler(session, start)
        for collection in missing:
            arms = session.arms_needing(collection.kind)
            with session.directory.timed("rollouts", set=collection.kind, arms=arms):
                out = session.directory.rollouts(collection.kind, collection.name)
                sampler.sample(collection, out, inputs_fingerprint(session, collection, key))
    _write_cost(session)
    _report(session)


def collections(session: Session) -> list[Collection]:
    """The pool and every validation set, with the responses a prompt of each."""
    config = session.config.rollouts
    for_validation = config.validation_responses or config.responses
    validation = session.sets.validation.items()
    return [
        Collection("pool", "", session.sets.pool, config.responses),
        *(Collection("validation", name, found, for_validation) for name, found in validation),
    ]


def inputs_fingerprint(
    session: Session, collection: Collection, policy_key: str, *where: str | int
) -> str:
    """What the rollouts of a collection depend on; `where` names the arm and stage of new ones."""
    return fingerprint(
        policy_key,
        dataclasses.asdict(session.config.rollouts.sampling),
        session.config.rollouts.engine.model_dump(),
        session.config.result_settings("verifiers"),
        session.config.prompts.chat_template_kwargs,
        collection.responses,
        session.seed("rollouts", collection.kind, collection.name, *where),
        [(p.prompt_id, p.content, p.answer, p.source) for p in collection.prompts],
    )


class Sampler:
    """A policy loaded to sample rollouts; `title` and `where` name the arm and stage, if any."""

    def __init__(
        self, session: Session, policy: str, title: str = "", where: tuple[str | int, ...] = ()
    ) -> None:
        rollouts = session.config.rollouts
        self.session = session
        self.policy = session.load(policy)
        self.engine: RolloutEngine = load_engine(rollouts.engine, self.policy)
        self.title = title
        self.where = where

    def sample(self, collection: Collection, out: Path, key: str) -> None:
        """Sample and judge a collection into the file `out`."""
        session, config = self.session, self.session.config
        kind, name, total = collection.kind, collection.name, len(collection.prompts)
        title = f"{self.title} rollouts {name or kind}".strip()
        with session.reporter.phase(title, total) as bar:
            collect(
                self.engine,
                self.policy.tokenizer,
                collection.prompts,
                session.judge,
                config.rollouts.sampling,
                collection.responses,
                session.seed("rollouts", kind, name, *self.where),
                out,
                self.policy.identity,
                key,
                template_kwargs=config.prompts.chat_template_kwargs,
                progress=lambda done, total: bar.update(done, total),
            )
            bar.note = f"{total:,} prompts x {collection.responses} responses"


def rollout_cost(
    session: Session,
    groups: Sequence[RolloutGroup],
    arm: str = "",
    stage: int | None = None,
    **shared: Any,
) -> CostRow:
    """The cost row of sampling these groups: what was sampled, and each prompt's prefill."""
    generated = sum(group.tokens for group in groups)
    prefill = sum(len(group.prompt_ids) for group in groups)
    size = session.parameters
    return cost_row("rollouts", size, arm, stage, generated=generated, forward=prefill, **shared)


def _write_cost(session: Session) -> None:
    """What arms share: rollouts, for those that use them, warm-up, the first evaluation."""
    rows = []
    for kind in ("pool", "validation"):
        named = [c for c in collections(session) if c.kind == kind]
        groups = [g for c in named for g in session.rollouts(c.kind, c.name)]
        arms = session.arms_needing(kind)
        rows.append(rollout_cost(session, groups, set=kind, arms=arms))
    evaluated = read_rows(session.directory.start_evaluation).of(EvaluationRow)
    rows += [evaluation_cost(session, evaluated)] if evaluated else []
    if warmed := session.warmup_tokens():
        rows.append(cost_row("warmup", session.parameters, forward=warmed, backward=warmed))
    write_rows(session.directory.shared_costs, rows)
    session.directory.gather_metrics()


def _report(session: Session) -> None:
    groups = session.rollouts("pool")
    informative = np.mean([g.informative for g in groups])
    session.reporter.say(f"  {informative:.0%} of the pool is informative", style="dim")
    statuses = Counter(r.reward_status for g in groups for r in g.responses)
    for status, count in statuses.items():
        if status != "ok":
            session.reporter.warn(f"{count:,} pool responses could not be judged ({status})")
