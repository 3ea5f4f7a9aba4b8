"""Step 4, before every stage: influence of each pool prompt under the current policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cropi.alignment import Influence
from cropi.artifacts import is_current, write_json
from cropi.config import InfluenceConfig
from cropi.run_directory import Stage
from cropi.schema import RolloutGroup, ScoreTable, fingerprint
from cropi.scoring import make_scorer
from cropi.selection import Needs
from cropi.steps.refresh import StageRollouts
from cropi.steps.session import Session
from cropi.tables import read_scores, write_scores


def score(
    session: Session, stage: Stage, needs: Needs, policy: str, rollouts: StageRollouts
) -> ScoreTable | None:
    """Return the scores that a strategy needs, from file where they are current."""
    if needs.scoring == "never":
        return None
    if needs.scoring == "once" and stage.index > 0:
        return read_scores(stage.sibling(0).scores)
    made_from = _made_from(session, policy, needs, rollouts)
    if not is_current(stage.scores, made_from):
        with session.directory.timed("scoring", stage.arm, stage.index):
            influence = _influence(session, stage, policy, needs, rollouts)
        write_json(stage.influence_facts, _facts(influence))
        write_scores(stage.scores, influence.table, {"cropi.made_from": made_from})
    return read_scores(stage.scores)


def _influence(
    session: Session, stage: Stage, policy: str, needs: Needs, rollouts: StageRollouts
) -> Influence:
    config = session.config
    with session.narrator.phase(f"{stage.title} influence") as bar:
        scorer = make_scorer(
            session.load(policy).model,
            _settings(session, stage, needs),
            session.seed("sketch"),
            lambda phase, done, total: bar.update(done, total, note=phase),
            config.rollouts.max_new_tokens,
            Path(policy),
        )
        influence = scorer.score(rollouts.pool, directions(needs, rollouts))
        bar.note = f"{len(influence.table.prompt_ids):,} prompts, {influence.tokens:,} tokens"
    if needs.validation:  # what is said of a target makes no sense of the pool as its own
        for note in influence.notes:
            session.narrator.warn(note)
    return influence


def directions(needs: Needs, rollouts: StageRollouts) -> dict[str, list[RolloutGroup]]:
    """What a strategy compares prompts with, by name."""
    if needs.direction == "pool":
        return {"pool": rollouts.pool}
    if needs.direction == "mean":
        return {"validation": [g for groups in rollouts.validation.values() for g in groups]}
    return rollouts.validation


def _settings(session: Session, stage: Stage, needs: Needs) -> InfluenceConfig:
    """The config's, but for the first stage's Adam: nothing has been trained yet.

    A mean cosine with the pool is the cosine with its mean unit gradient, whatever the config says.
    """
    influence = session.config.influence
    if needs.direction == "pool":
        influence = influence.model_copy(update={"target": "unit_mean"})
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


def _made_from(session: Session, policy: str, needs: Needs, rollouts: StageRollouts) -> str:
    return fingerprint(
        session.policy_key(policy),
        rollouts.key,
        needs.direction,
        session.config.determining("influence"),
        session.seed("sketch"),
    )
