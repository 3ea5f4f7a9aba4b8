"""Before a later stage: sample again what the current policy has left behind.

A stage's rollout files hold only what was sampled anew; read over those of earlier stages and of
the start policy they give the rollouts that the stage works with. The paper samples once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from cropi.artifacts import file_hash, is_current, write_json
from cropi.costs import cost_row
from cropi.diagnostics import diagnose_staleness
from cropi.diagnostics.staleness import Staleness
from cropi.rollouts import read_rollouts
from cropi.run_directory import Row, Stage
from cropi.schema import RolloutGroup
from cropi.selection import Needs
from cropi.steps.rollouts import Collection, Sampler, collections, made_from, rollout_cost
from cropi.steps.session import Session


@dataclasses.dataclass(frozen=True)
class StageRollouts:
    """The rollouts that a stage works with, and the files they come from."""

    pool: list[RolloutGroup]
    validation: dict[str, list[RolloutGroup]]
    files: list[Path]

    @property
    def key(self) -> list[str]:
        """What they are, for whatever is made from them."""
        return [file_hash(file) for file in self.files]


def refresh(session: Session, stage: Stage, needs: Needs, policy: str) -> StageRollouts:
    """Sample again what the config or the strategy asks for; return the stage's rollouts."""
    kinds = _kinds(session, stage, needs)
    if kinds and not stage.refresh_facts.exists():
        with session.directory.timed("rollouts", stage.arm, stage.index):
            rows = _refresh(session, stage, kinds, policy)
            write_json(stage.refresh_facts, rows)
    return stage_rollouts(session, stage)


def stage_rollouts(session: Session, stage: Stage) -> StageRollouts:
    """The start policy's rollouts with everything over them that stages have sampled since."""
    found, files = {}, []
    for each in collections(session):
        groups = session.rollouts(each.kind, each.name)
        files.append(session.directory.rollouts(each.kind, each.name))
        for index in range(stage.index + 1):
            newer = stage.sibling(index).rollouts(each.kind, each.name)
            if newer.exists():
                over = overlaid(groups, read_rollouts(newer))
                # A set that is solved, or hopeless, keeps the last direction that it had.
                groups = over if any(g.informative for g in over) else groups
                files.append(newer)
        found[each.kind, each.name] = groups
    pool = found.pop(("pool", ""))
    return StageRollouts(pool, {name: groups for (_, name), groups in found.items()}, files)


def overlaid(groups: Sequence[RolloutGroup], newer: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """`groups` in their order, each replaced by the one of `newer` with its prompt."""
    known = {group.prompt_id: group for group in newer}
    return [known.get(group.prompt_id, group) for group in groups]


def refresh_costs(stage: Stage) -> list[Row]:
    """Cost rows of what the stage sampled anew."""
    if not stage.refresh_facts.exists():
        return []
    return list(json.loads(stage.refresh_facts.read_text())["costs"])


def _kinds(session: Session, stage: Stage, needs: Needs) -> list[str]:
    """Which collections are due: all, the validation sets, or those and stale pool prompts."""
    asked = "all" if needs.fresh else session.config.rollouts.refresh
    if stage.index == 0 or asked == "never" or needs.scoring == "once":
        return []
    kinds = ["validation"] if needs.validation else []
    if asked == "all" and needs.rollouts:
        return ["pool", *kinds]
    if asked == "stale" and needs.scoring == "stage":
        return ["stale", *kinds]
    return kinds


def _refresh(
    session: Session, stage: Stage, kinds: Sequence[str], policy: str
) -> dict[str, object]:
    where: Row = {"arm": stage.arm, "stage": stage.index}
    sampler = Sampler(session, policy, stage.title, (stage.arm, stage.index))
    costs: list[Row] = []
    for each in collections(session):
        wanted = each
        if each.kind == "pool" and "stale" in kinds:
            wanted, row = _stale(session, stage, each, sampler)
            costs.append({**row, **where})
        elif each.kind not in kinds:
            continue
        if not wanted.prompts:
            continue
        out = stage.rollouts(each.kind, each.name)
        key = made_from(session, wanted, session.policy_key(policy), stage.arm, stage.index)
        if not is_current(out, key):
            sampler.sample(wanted, out, key)
        costs.append(rollout_cost(session, read_rollouts(out), where))
    return {"costs": costs}


def _stale(
    session: Session, stage: Stage, pool: Collection, sampler: Sampler
) -> tuple[Collection, Row]:
    """The pool's prompts whose rollouts the policy has left behind, and what finding them cost."""
    groups = stage_rollouts(session, stage.sibling(stage.index - 1)).pool
    with session.narrator.phase(f"{stage.title} staleness", len(groups)) as bar:
        found: Staleness = diagnose_staleness(
            groups,
            sampler.policy,
            batch_tokens=session.config.influence.batch_tokens,
            progress=lambda _, done, total: bar.update(done, total),
        )
        stale = set(found.refresh)
        bar.note = f"{len(stale):,} of {len(groups):,} prompts are stale"
    read = sum(len(g.prompt_ids) for g in groups) + found.tokens
    kept = [p for p in pool.prompts if p.prompt_id in stale]
    row = cost_row("rollouts", session.parameters, {}, forward=read)
    return dataclasses.replace(pool, prompts=kept), row
