"""Step 3: sample and judge responses of the start policy, once for all stages and arms."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from cropi.artifacts import is_current, read_lines, write_lines
from cropi.costs import cost_row
from cropi.models import Policy
from cropi.rollouts import RolloutEngine, collect, load_engine
from cropi.schema import Prompt, fingerprint
from cropi.steps.evaluation import evaluation_cost
from cropi.steps.session import Session


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
        for c in _collections(session)
        if not is_current(session.directory.rollouts(c.kind, c.name), _made_from(session, c, key))
    ]
    if missing:
        policy = session.load(start)
        rollouts = session.config.rollouts
        engine = load_engine(rollouts.engine, policy, rollouts.batch_size)
        for collection in missing:
            _collect(session, collection, policy, engine, _made_from(session, collection, key))
    _write_cost(session)
    _report(session)


def _collections(session: Session) -> list[Collection]:
    config = session.config.rollouts
    for_validation = config.validation_responses or config.responses
    validation = session.sets.validation.items()
    return [
        Collection("pool", "", session.sets.pool, config.responses),
        *(Collection("validation", name, found, for_validation) for name, found in validation),
    ]


def _made_from(session: Session, collection: Collection, policy_key: str) -> str:
    return fingerprint(
        policy_key,
        dataclasses.asdict(session.config.rollouts.sampling),
        session.config.rollouts.engine,
        session.config.rollouts.batch_size,
        session.config.determining("verifiers"),
        session.config.prompts.chat_template_kwargs,
        collection.responses,
        session.seed("rollouts", collection.kind, collection.name),
        [(p.prompt_id, p.content, p.answer, p.source) for p in collection.prompts],
    )


def _collect(
    session: Session,
    collection: Collection,
    policy: Policy,
    engine: RolloutEngine,
    made_from: str,
) -> None:
    directory, kind, name = session.directory, collection.kind, collection.name
    total = len(collection.prompts)
    title = f"rollouts {name or kind}"
    with directory.timed("rollouts"), session.narrator.phase(title, total) as bar:
        collect(
            engine,
            policy.tokenizer,
            collection.prompts,
            session.judge,
            session.config.rollouts.sampling,
            collection.responses,
            session.seed("rollouts", kind, name),
            directory.rollouts(kind, name),
            policy.identity,
            made_from,
            template_kwargs=session.config.prompts.chat_template_kwargs,
            progress=lambda done, total: bar.update(done, total),
        )
        bar.note = f"{total:,} prompts x {collection.responses} responses"


def _write_cost(session: Session) -> None:
    """What all arms share: rollouts (sampled tokens, prefill), warm-up, the first evaluation."""
    groups = [g for c in _collections(session) for g in session.rollouts(c.kind, c.name)]
    generated = sum(g.tokens for g in groups)
    prefill = sum(len(g.prompt_ids) for g in groups)
    row = cost_row("rollouts", session.parameters, {}, generated=generated, forward=prefill)
    evaluated = read_lines(session.directory.start_evaluation)
    others = [evaluation_cost(session, evaluated, {})] if evaluated else []
    if warmed := session.warmup_tokens():
        others.append(cost_row("warmup", session.parameters, {}, forward=warmed, backward=warmed))
    write_lines(session.directory.shared_costs, [row, *others])
    session.directory.gather_metrics()


def _report(session: Session) -> None:
    groups = session.rollouts("pool")
    informative = np.mean([g.informative for g in groups])
    session.narrator.say(f"  {informative:.0%} of the pool is informative", style="dim")
    statuses = Counter(r.reward_status for g in groups for r in g.responses)
    for status, count in statuses.items():
        if status != "ok":
            session.narrator.warn(f"{count:,} pool responses could not be judged ({status})")
