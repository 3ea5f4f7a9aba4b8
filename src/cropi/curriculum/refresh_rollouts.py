"""Before a later stage: sample again what the current policy has left behind.

A stage's rollout files hold only what was sampled anew; read over those of earlier stages and of
the start policy they give the rollouts that the stage works with. The paper samples once.

What a stage has sampled stands in its rollouts.json, written last: files that it does not list are
remains of an attempt that was cut off, and are not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from cropi.curriculum.collect_rollouts import (
    Collection,
    Sampler,
    collections,
    inputs_fingerprint,
    rollout_cost,
)
from cropi.curriculum.session import Session
from cropi.diagnostics import diagnose_staleness
from cropi.rollouts import read_rollouts
from cropi.schema import RolloutGroup, fingerprint
from cropi.selection import Needs
from cropi.store.files import file_hash, is_current, write_json
from cropi.store.metrics import CostRow, cost_row, from_json, to_json
from cropi.store.run_directory import Row, Stage


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
    kinds = due(session, stage, needs)
    if kinds:
        key = _key(session, stage, kinds, policy)
        if _facts(stage).get("inputs_fingerprint") != key:
            with session.directory.timed("rollouts", stage.arm, stage.index):
                facts = _Refreshment(session, stage, policy).of(kinds)
                write_json(stage.refresh_facts, {"inputs_fingerprint": key, **facts})
    return stage_rollouts(session, stage)


def due(session: Session, stage: Stage, needs: Needs) -> list[str]:
    """Which collections are due: all, the validation sets, or those and stale pool prompts."""
    asked = "all" if needs.fresh else session.config.curriculum.refresh
    if stage.index == 0 or asked == "never" or needs.scoring == "once":
        return []
    kinds = ["validation"] if needs.validation else []
    if asked == "all" and needs.rollouts:
        return ["pool", *kinds]
    if asked == "stale" and needs.scoring == "stage":
        return ["stale", *kinds]
    return kinds


def stage_rollouts(session: Session, stage: Stage) -> StageRollouts:
    """The start policy's rollouts with everything over them that stages have sampled since."""
    stages = [stage.sibling(index) for index in range(stage.index + 1)]
    listed = [_facts(each).get("files", []) for each in stages]
    found, files = {}, []
    for each in collections(session):
        groups = session.rollouts(each.kind, each.name)
        files.append(session.directory.rollouts(each.kind, each.name))
        for sampled, names in zip(stages, listed, strict=True):
            if [each.kind, each.name] in names:
                newer = sampled.rollouts(each.kind, each.name)
                over = replace_groups(groups, read_rollouts(newer))
                # A set that is solved, or hopeless, keeps the last direction that it had.
                groups = over if any(g.informative for g in over) else groups
                files.append(newer)
        found[each.kind, each.name] = groups
    pool = found.pop(("pool", ""))
    return StageRollouts(pool, {name: groups for (_, name), groups in found.items()}, files)


def replace_groups(
    groups: Sequence[RolloutGroup], newer: Sequence[RolloutGroup]
) -> list[RolloutGroup]:
    """`groups` in their order, each replaced by the one of `newer` with its prompt."""
    known = {group.prompt_id: group for group in newer}
    return [known.get(group.prompt_id, group) for group in groups]


def refresh_costs(stage: Stage) -> list[CostRow]:
    """Cost rows of what the stage sampled again."""
    rows = map(from_json, _facts(stage).get("costs", []))
    return [row for row in rows if isinstance(row, CostRow)]


def _facts(stage: Stage) -> Row:
    """What the stage has sampled; empty where it sampled nothing."""
    file = stage.refresh_facts
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _key(session: Session, stage: Stage, kinds: Sequence[str], policy: str) -> str:
    """What new rollouts depend on: the policy, how it is sampled, and what there was before."""
    before = stage_rollouts(session, stage.sibling(stage.index - 1)).key
    policy_key, where = session.policy_key(policy), (stage.arm, stage.index)
    wanted = [
        inputs_fingerprint(session, each, policy_key, *where) for each in collections(session)
    ]
    return fingerprint(list(kinds), wanted, before)


class _Refreshment:
    """One stage's new rollouts, with what they cost."""

    def __init__(self, session: Session, stage: Stage, policy: str) -> None:
        self.session = session
        self.stage = stage
        self.policy_key = session.policy_key(policy)
        self.sampler = Sampler(session, policy, stage.title, (stage.arm, stage.index))
        self.files: list[tuple[str, str]] = []
        self.costs: list[CostRow] = []

    def of(self, kinds: Sequence[str]) -> Row:
        """Sample the collections of these kinds; return what rollouts.json says of them."""
        for each in collections(self.session):
            if each.kind in kinds:
                self._sample(each)
            elif each.kind == "pool" and "stale" in kinds:
                self._sample(self._stale(each))
        return {"files": self.files, "costs": [to_json(row) for row in self.costs]}

    def _sample(self, wanted: Collection) -> None:
        if not wanted.prompts:
            return
        out = self.stage.rollouts(wanted.kind, wanted.name)
        where = (self.stage.arm, self.stage.index)
        key = inputs_fingerprint(self.session, wanted, self.policy_key, *where)
        if not is_current(out, key):
            self.sampler.sample(wanted, out, key)
        self.files.append((wanted.kind, wanted.name))
        self.costs.append(rollout_cost(self.session, read_rollouts(out), *where))

    def _stale(self, pool: Collection) -> Collection:
        """The pool's prompts that the policy has left behind; reading log-probs has a price."""
        session, stage = self.session, self.stage
        groups = stage_rollouts(session, stage.sibling(stage.index - 1)).pool
        with session.reporter.phase(f"{stage.title} staleness", len(groups)) as bar:
            found = diagnose_staleness(
                groups,
                self.sampler.policy,
                batch_tokens=session.config.influence.batch_tokens,
                progress=lambda _, done, total: bar.update(done, total),
            )
            stale = set(found.refresh)
            bar.note = f"{len(stale):,} of {len(groups):,} prompts are stale"
        read = sum(len(g.prompt_ids) for g in groups) + found.tokens
        # Log-probs are read as scores are: forward passes over stored tokens.
        self.costs.append(
            cost_row("scoring", session.parameters, stage.arm, stage.index, forward=read)
        )
        return dataclasses.replace(pool, prompts=[p for p in pool.prompts if p.prompt_id in stale])
