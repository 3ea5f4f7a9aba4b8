"""Step 4, before every stage: influence of each pool prompt under the current policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cropi.curriculum.refresh_rollouts import StageRollouts
from cropi.curriculum.session import Session
from cropi.influence.cosines import Influence
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import make_scorer
from cropi.schema import InfluenceEstimate, RolloutGroup, fingerprint
from cropi.selection import Needs
from cropi.store.files import is_current, write_json
from cropi.store.run_directory import Stage
from cropi.store.tables import read_scores, write_scores


def score(
    session: Session, stage: Stage, needs: Needs, policy: str, rollouts: StageRollouts
) -> InfluenceEstimate | None:
    """Return the scores that a strategy needs, from file where they are current."""
    if needs.scoring == "never":
        return None
    if needs.scoring == "once" and stage.index > 0:
        return read_scores(stage.sibling(0).scores)
    inputs_fingerprint = _made_from(session, policy, needs, rollouts)
    if not is_current(stage.scores, inputs_fingerprint):
        with session.directory.timed("scoring", stage.arm, stage.index):
            influence = _influence(session, stage, policy, needs, rollouts)
        write_json(stage.influence_facts, _facts(influence))
        write_scores(
            stage.scores, influence.estimate, {"cropi.inputs_fingerprint": inputs_fingerprint}
        )
    return read_scores(stage.scores)


def _influence(
    session: Session, stage: Stage, policy: str, needs: Needs, rollouts: StageRollouts
) -> Influence:
    config = session.config
    with session.reporter.phase(f"{stage.title} influence") as bar:
        scorer = make_scorer(
            session.load(policy).model,
            _settings(session, stage, needs),
            session.seed("sketch"),
            lambda phase, done, total: bar.update(done, total, note=phase),
            config.rollouts.max_new_tokens,
            Path(policy),
        )
        influence = scorer.score(rollouts.pool, directions(needs, rollouts))
        bar.note = (
            f"{int(influence.estimate.is_scored.sum()):,} prompts, {influence.tokens:,} tokens"
        )
    if needs.validation:  # what is said of a target makes no sense of the pool as its own
        for note in influence.notes:
            session.reporter.warn(note)
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
    session.reporter.warn(
        "influence.precondition begins with the second stage: the start policy has no Adam state"
    )
    return influence.model_copy(update={"precondition": "none"})


def _facts(influence: Influence) -> dict[str, object]:
    return {
        "tokens": influence.tokens,
        "targets": {name: dataclasses.asdict(t) for name, t in influence.reliability.items()},
        "notes": influence.notes,
    }


def _made_from(session: Session, policy: str, needs: Needs, rollouts: StageRollouts) -> str:
    return fingerprint(
        session.policy_key(policy),
        rollouts.key,
        needs.direction,
        session.config.result_settings("influence"),
        session.seed("sketch"),
    )
