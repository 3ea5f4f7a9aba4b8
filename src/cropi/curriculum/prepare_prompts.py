"""Step 1: load every set, settle duplicates, overlap and length, and try the verifiers."""

from __future__ import annotations

import dataclasses
from typing import Any

from cropi.curriculum.session import Session
from cropi.policy.loading import Policy
from cropi.prompts import PromptSets, drop_overlong, load_prompt_sets, write_prompts
from cropi.schema import fingerprint
from cropi.store.files import write_json


def load_prompts(session: Session) -> None:
    """Load pool, validation and test sets into the session, and write them down."""
    directory, config = session.directory, session.config
    with directory.timed("prompts"), session.reporter.phase("prompts") as bar:
        policy = session.load(config.model.path)
        sets = load_prompt_sets(config.prompts, session.seed("prompts"), directory.base)
        session.sets = drop_overlong(
            policy.tokenizer,
            sets,
            config.prompts.max_tokens or policy.context - config.max_response_tokens,
            config.prompts.overlong,
            config.prompts.chat_template_kwargs,
        )
        session.judge.check([p for found in session.sets.named().values() for p in found])
        inputs = _inputs(session, policy)
        directory.require_same_inputs(**inputs)
        _write(session)
        directory.write_manifest(seeds=_seeds(session), **inputs)
        bar.note = _counted(session.sets)
    for line in session.sets.notes.lines():
        session.reporter.warn(line)


def _counted(sets: PromptSets) -> str:
    validation = sum(map(len, sets.validation.values()))
    test = sum(map(len, sets.test.values()))
    return f"{len(sets.pool):,} in the pool, {validation:,} validation, {test:,} test"


def _write(session: Session) -> None:
    directory, sets = session.directory, session.sets
    write_prompts(directory.prompts("pool"), sets.pool)
    for kind, named in (("validation", sets.validation), ("test", sets.test)):
        for name, prompts in named.items():
            write_prompts(directory.prompts(kind, name), prompts)
    notes = {**sets.notes.as_dict(), "lines": sets.notes.lines()}
    write_json(directory.root / "prompts" / "notes.json", notes)


def _inputs(session: Session, policy: Policy) -> dict[str, Any]:
    """What the run is made from beside its settings: model and prompts, by content."""
    return {
        "model": {**dataclasses.asdict(policy.identity), "parameters": session.parameters},
        "prompts": {
            name: fingerprint([(p.prompt_id, p.content, p.answer, p.source) for p in prompts])
            for name, prompts in session.sets.named().items()
        },
    }


def _seeds(session: Session) -> dict[str, int]:
    """The run's seed and every component's, by the path that it is derived with."""
    config = session.config
    stages = range(config.curriculum.stages)
    components: list[tuple[str | int, ...]] = [
        *(("prompts",), ("warmup",), ("warmup", "prompts"), ("sketch",), ("order",)),
        ("evaluation",),
        ("rollouts", "pool", ""),
        *(("rollouts", "validation", name) for name in config.prompts.validation),
        *(("training", stage) for stage in stages),
        *(
            ("selection", strategy.slug, stage)
            for strategy in config.strategies
            for stage in stages
        ),
    ]
    return {"run": config.seed, **{"/".join(map(str, c)): session.seed(*c) for c in components}}
