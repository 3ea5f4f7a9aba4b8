"""Step 4, before every stage: influence of each pool prompt under the current policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cropi.alignment import Influence
from cropi.artifacts import file_hash, is_current, write_json
from cropi.config import InfluenceConfig
from cropi.run_directory import Stage
from cropi.schema import ScoreTable, fingerprint
from cropi.scoring import make_scorer
from cropi.selection import Strategy
from cropi.steps.session import Session
from cropi.tables import read_scores, write_scores


def score(session: Session, stage: Stage, strategy: Strategy, policy: str) -> ScoreTable | None:
    """Return the scores that `strategy` asked for, from file where they are current."""
    if strategy.scoring == "never":
        return None
    if strategy.scoring == "once" and stage.index > 0:
        return read_scores(stage.sibling(0).scores)
    made_from = _made_from(session, policy)
    if not is_current(stage.scores, made_from):
        with session.directory.timed("scoring", stage.arm, stage.index):
            influence = _influence(session, stage, policy)
        write_json(stage.influence_facts, _facts(influence))
        write_scores(stage.scores, influence.table, {"cropi.made_from": made_from})
    return read_scores(stage.scores)


def _influence(session: Session, stage: Stage, policy: str) -> Influence:
    config = session.config
    targets = {name: session.rollouts("validation", name) for name in session.sets.validation}
    with session.narrator.phase(f"{stage.title} influence") as bar:
        scorer = make_scorer(
            session.load(policy).model,
            _settings(session, stage),
            session.seed("sketch"),
            lambda phase, done, total: bar.update(done, total, note=phase),
            config.rollouts.max_new_tokens,
            Path(policy),
        )
        influence = scorer.score(session.rollouts("pool"), targets)
        bar.note = f"{len(influence.table.prompt_ids):,} prompts, {influence.tokens:,} tokens"
    for note in influence.notes:
        session.narrator.warn(note)
    return influence


def _settings(session: Session, stage: Stage) -> InfluenceConfig:
    """The config's, but for the first stage's Adam: nothing has been trained yet."""
    influence = session.config.influence
    if stage.index > 0 or influence.precondition == "none":
        return influence
    session.narrator.warn(
        "influence.precondition begins with the second stage: the start policy has no Adam state"
    )
    return influence.model_copy(update={"precondition": "none"})


def _facts(influence: Influence) -> dict[str, object]:
    return {
        "tokens": influence.tokens,
        "targets": {name: dataclasses.asdict(t) for name, t in influence.trust.items()},
        "notes": influence.notes,
    }


def _made_from(session: Session, policy: str) -> str:
    files = [session.directory.rollouts("pool")]
    files += [session.directory.rollouts("validation", n) for n in session.sets.validation]
    return fingerprint(
        session.policy_key(policy),
        [file_hash(f) for f in files],
        session.config.determining("influence"),
        session.seed("sketch"),
    )
