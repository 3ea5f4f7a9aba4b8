"""Before a later stage: sample again what the current policy has moved away from.

A stage's rollout files hold only what it sampled again; they replace, prompt by prompt, those of
earlier stages and of the start policy, which gives the rollouts that the stage works with. The
paper samples once.

What a stage has sampled is listed in its rollouts.json, written last: files that it does not list
are left over from an attempt that was cut off, and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cropi.curriculum.policies import Policies
from cropi.curriculum.start_rollouts import (
    RolloutRequest,
    Sampler,
    StartRollouts,
    rollout_cost,
)
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts import read_rollouts
from cropi.rollouts.staleness import staleness_under
from cropi.schema import RolloutGroup
from cropi.selection import Needs
from cropi.store.cached import FINGERPRINT, cached, read_record
from cropi.store.files import file_hash, write_json
from cropi.store.metrics import CostRow, cost_row, from_json, to_json
from cropi.store.run_directory import RunDirectory, Stage


@dataclass(frozen=True)
class StageRollouts:
    """The rollouts that a stage works with, and the files they come from."""

    pool: list[RolloutGroup]
    validation: dict[str, list[RolloutGroup]]
    files: list[Path]

    @property
    def key(self) -> list[str]:
        """The content of the files, for whatever is made from these rollouts."""
        return [file_hash(file) for file in self.files]


@dataclass(frozen=True)
class RolloutRefresh:
    """Samples again before a later stage what the settings or the strategy ask for.

    `when` is the setting `refresh`; `batch_tokens` bounds the forward passes that measure
    staleness.
    """

    when: str
    batch_tokens: int | None
    requests: Sequence[RolloutRequest]
    sampler: Sampler
    policies: Policies

    def rollouts(
        self, stage: Stage, needs: Needs, policy: str, start: StartRollouts
    ) -> StageRollouts:
        """Return the rollouts that a stage works with, after sampling again what is due."""
        directory = self.sampler.log.directory
        kinds = sets_to_refresh(self.when, stage.index, needs)
        if kinds:
            policy_key, previous = self.policies.key(policy), stage.sibling(stage.index - 1)
            before = stage_rollouts(directory, previous, self.requests, start)
            sampling = [self.sampler.inputs(each, policy_key, stage) for each in self.requests]
            cached(
                stage.refresh_facts,
                (kinds, sampling, before.key),
                lambda inputs_fingerprint: self._sample(
                    stage, kinds, policy, before.pool, inputs_fingerprint
                ),
                directory.ledger,
                lambda: sampled_files(stage),
            )
        return stage_rollouts(directory, stage, self.requests, start)

    def _sample(
        self,
        stage: Stage,
        kinds: Sequence[str],
        policy: str,
        pool: Sequence[RolloutGroup],
        inputs_fingerprint: str,
    ) -> None:
        """Sample the sets of these kinds, and list them with their costs in rollouts.json."""
        with ExitStack() as stack:  # the sets share what is started for the policy
            reference: Callable[[], PolicyRef] = cache(
                lambda: stack.enter_context(self.policies.reference(policy))
            )
            costs: list[CostRow] = []
            sampled = [group for group in pool if group.responses]
            requests = [_limited(each, sampled) for each in self.requests if each.kind in kinds]
            if "stale" in kinds:
                stale, cost = self._stale_pool(stage, reference().load(), sampled)
                requests, costs = [stale, *requests], [cost]
            requests = [each for each in requests if each.prompts]
            for each in requests:
                out = stage.rollouts(each.kind, each.name)
                groups = self.sampler.sample(reference, self.policies.key(policy), each, out, stage)
                costs.append(rollout_cost(groups, self.policies.parameters, stage.arm, stage.index))
        write_json(
            stage.refresh_facts,
            {
                FINGERPRINT: inputs_fingerprint,
                "files": [(each.kind, each.name) for each in requests],
                "costs": [to_json(row) for row in costs],
            },
        )

    def _stale_pool(
        self, stage: Stage, policy: Policy, groups: Sequence[RolloutGroup]
    ) -> tuple[RolloutRequest, CostRow]:
        """The pool's prompts that the policy has moved away from, and what finding them cost."""
        log = self.sampler.log
        with log.phase(f"{stage.title} staleness", "rollouts", stage, len(groups)) as bar:
            staleness = staleness_under(policy.model, groups, self.batch_tokens, bar.update)
            stale = set(staleness.refresh)
            bar.note = f"{len(stale):,} of {len(groups):,} prompts are stale"
        tokens = sum(len(g.prompt_ids) for g in groups) + staleness.tokens
        # Log-probs are read as scores are: forward passes over stored tokens.
        cost = cost_row("scoring", self.policies.parameters, stage.arm, stage.index, forward=tokens)
        pool = next(each for each in self.requests if each.kind == "pool")
        return replace(pool, prompts=[p for p in pool.prompts if p.prompt_id in stale]), cost


def _limited(request: RolloutRequest, sampled: Sequence[RolloutGroup]) -> RolloutRequest:
    """The request without prompts of the pool that the arm has never sampled."""
    if request.kind != "pool":
        return request
    ids = {group.prompt_id for group in sampled}
    return replace(request, prompts=[p for p in request.prompts if p.prompt_id in ids])


def sets_to_refresh(when: str, stage: int, needs: Needs) -> list[str]:
    """Return which sets are due: "pool" or its "stale" prompts, and "validation"."""
    asked = "all" if needs.fresh else when
    if stage == 0 or asked == "never" or needs.scoring == "once":
        return []
    kinds = ["validation"] if needs.validation else []
    if asked == "all" and needs.rollouts:
        return ["pool", *kinds]
    if asked == "stale" and needs.scoring == "stage":
        return ["stale", *kinds]
    return kinds


def sampled_files(stage: Stage) -> list[Path]:
    """The files of what a stage sampled again."""
    return [stage.rollouts(*names) for names in read_record(stage.refresh_facts)["files"]]


def stage_rollouts(
    directory: RunDirectory,
    stage: Stage,
    requests: Sequence[RolloutRequest],
    start: StartRollouts,
) -> StageRollouts:
    """Return the start policy's rollouts, replaced by those that stages have sampled since."""
    stages = [stage.sibling(index) for index in range(stage.index + 1)]
    listed = [read_record(each.refresh_facts).get("files", []) for each in stages]
    rollouts, files = {}, []
    for each in requests:
        groups = start[each.kind, each.name]
        if any(group.responses for group in groups):
            files.append(directory.rollouts(each.kind, each.name))
        for sampled, names in zip(stages, listed, strict=True):
            if [each.kind, each.name] in names:
                newer = sampled.rollouts(each.kind, each.name)
                replaced = replace_groups(groups, read_rollouts(newer))
                # A set that is solved, or hopeless, keeps the last direction that it had.
                groups = replaced if any(g.informative for g in replaced) else groups
                files.append(newer)
        rollouts[each.kind, each.name] = groups
    pool = rollouts.pop(("pool", ""))
    return StageRollouts(pool, {name: groups for (_, name), groups in rollouts.items()}, files)


def pool_files_so_far(directory: RunDirectory, stage: Stage, needs: Needs) -> list[Path]:
    """All files with rollouts of pool prompts before a stage trains, in the order of sampling.

    They are the start policy's, and for every stage what it sampled, if it did, and what its
    training sampled, if its engine reports that.
    """
    files = [directory.rollouts("pool")] if needs.whole_pool else []
    for index in range(stage.index + 1):
        each = stage.sibling(index)
        if ["pool", ""] in read_record(each.refresh_facts).get("files", []):
            files.append(each.rollouts("pool"))
        if index < stage.index and each.rollouts("training").exists():
            files.append(each.rollouts("training"))
    return files


def replace_groups(
    groups: Sequence[RolloutGroup], newer: Sequence[RolloutGroup]
) -> list[RolloutGroup]:
    """Return `groups` in their order, each replaced by the one of `newer` with its prompt."""
    newer_by_id = {group.prompt_id: group for group in newer}
    return [newer_by_id.get(group.prompt_id, group) for group in groups]


def refresh_costs(stage: Stage) -> list[CostRow]:
    """Return cost rows of what the stage sampled again."""
    rows = map(from_json, read_record(stage.refresh_facts).get("costs", []))
    return [row for row in rows if isinstance(row, CostRow)]
