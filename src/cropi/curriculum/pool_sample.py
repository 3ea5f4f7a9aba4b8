"""Before the first stage: roll out and score only as much of the pool as a strategy needs.

Strategies that predict influence (`Needs.sample`) need a sample of the pool that is large enough
for the noise of single prompts, however large the pool is. Prompts are drawn at random, rolled out
and scored; as long as the strategy finds that too little, as many again. What was scored is not
scored again.

A portion's rollouts have a file of their own until the last portion has been scored; then all are
one file, `rollouts/pool.parquet` of the arm's first stage, which stands for the start policy's
rollouts of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.policies import Policies
from cropi.curriculum.stage_rollouts import StageRollouts, replace_groups, stage_rollouts
from cropi.curriculum.stage_selection import HiddenStates, StageScorer, progress_of, target_rollouts
from cropi.curriculum.start_rollouts import (
    RolloutRequest,
    Sampler,
    StartRollouts,
    report_pool,
    rollout_cost,
    without_responses,
)
from cropi.influence.cosines import Influence
from cropi.influence.growing_pool import GrowingPool
from cropi.influence.left_out_prompts import informative_targets, require_informative
from cropi.rollouts import read_rollouts
from cropi.rollouts.rollout_file import write_rollouts
from cropi.schema import Prompt, RolloutGroup
from cropi.selection import Needs, enough
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.store.cached import FINGERPRINT, cached, is_current, stamp
from cropi.store.files import remove, write_json
from cropi.store.metrics import to_json
from cropi.store.run_directory import Stage
from cropi.text import plural


@dataclass(frozen=True)
class PoolSample:
    """Samples and scores a growing part of the pool; `threshold` turns rewards into passes."""

    requests: Sequence[RolloutRequest]
    sampler: Sampler
    scorer: StageScorer
    selection: SelectionConfig
    threshold: float | None
    policies: Policies

    def grow(
        self,
        first: Stage,
        strategy: StrategyChoice,
        needs: Needs,
        policy: str,
        start: StartRollouts,
        hidden_states: HiddenStates,
    ) -> StartRollouts:
        """Put the sample and its scores into an arm's first stage.

        Returns `start` as this arm knows it without those: no prompt of the pool has responses.
        """
        start = {**start, ("pool", ""): [without_responses(group) for group in start["pool", ""]]}
        before = self._before(start)
        settings = self.selection.model_copy(update={"strategy": strategy})
        inputs = (
            self.sampler.inputs(self.pool, self.policies.key(policy)),
            before.key,
            settings.model_dump(),
            self.threshold,
            self.scorer.inputs(needs),
        )

        ledger = self.sampler.log.directory.ledger
        sampling = _Growth(self, first, settings, needs, policy, start, before, hidden_states)

        def make(inputs_fingerprint: str) -> None:
            file = first.rollouts("pool")
            if is_current(file, inputs_fingerprint) and file not in ledger.changed():
                sampling.stored = {group.prompt_id: group for group in read_rollouts(file)}
            rollouts, influence = sampling.run(inputs_fingerprint)
            self.scorer.stored(first, needs, policy, rollouts, lambda: influence)

        # Scores are of the portions in their order: others would differ in the last bits.
        files = [first.rollouts("pool"), first.scores, first.influence_facts]
        cached(first.refresh_facts, inputs, make, ledger, lambda: files)
        return start

    def _before(self, start: StartRollouts) -> StageRollouts:
        """What there is to begin with: the rollouts of the validation sets."""
        directory = self.sampler.log.directory
        validation = {name: groups for (kind, name), groups in start.items() if kind != "pool"}
        files = [directory.rollouts("validation", name) for name in validation]
        return StageRollouts(start["pool", ""], validation, files)

    @property
    def pool(self) -> RolloutRequest:
        """The request for all prompts of the pool."""
        return next(each for each in self.requests if each.kind == "pool")


class _Growth:
    """One arm's sample while it grows; `stored` are groups that need not be sampled again."""

    def __init__(
        self,
        step: PoolSample,
        stage: Stage,
        settings: SelectionConfig,
        needs: Needs,
        policy: str,
        start: StartRollouts,
        before: StageRollouts,
        hidden_states: HiddenStates,
    ) -> None:
        self.step, self.stage, self.settings, self.needs = step, stage, settings, needs
        self.policy, self.start, self.before, self.hidden_states = (
            policy,
            start,
            before,
            hidden_states,
        )
        self.sampled: list[RolloutGroup] = []
        self.stored: dict[str, RolloutGroup] = {}
        self.log = step.sampler.log

    @property
    def pool(self) -> list[RolloutGroup]:
        """All prompts in the pool's order, with the responses that they have by now."""
        return replace_groups(self.before.pool, self.sampled)

    def run(self, inputs_fingerprint: str) -> tuple[StageRollouts, Influence]:
        """Grow the sample until it is enough; return what the stage works with, and its scores."""
        influence = self._grow()
        groups = [group for group in self.pool if group.responses]
        report_pool(groups, self.log)
        write_rollouts(self.stage.rollouts("pool"), groups, stamp(inputs_fingerprint))
        parameters = self.step.policies.parameters
        cost = rollout_cost(groups, parameters, self.stage.arm, self.stage.index)
        record = {
            FINGERPRINT: inputs_fingerprint,
            "files": [("pool", "")],
            "costs": [to_json(cost)],
        }
        write_json(self.stage.refresh_facts, record)
        remove(self._portion_file("any").parent)
        directory, requests = self.log.directory, self.step.requests
        return stage_rollouts(directory, self.stage, requests, self.start), influence

    def _grow(self) -> Influence:
        """Sample and score portions until the strategy has enough, or there are no more."""
        self._require_targets()
        evidence: PoolEvidence | None = None
        hidden_states = self.hidden_states() if self.needs.hidden_states else None
        seed = self.step.sampler.seeds.of("rollouts", "sample")
        for name, prompts in sampled_portions(self.step.pool.prompts, self.needs, seed):
            portion = self._portion(name, prompts)
            self.sampled += portion
            with self.step.scorer.phase(self.stage) as bar:
                evidence = evidence or self._evidence(hidden_states)
                evidence.growing.scorer.progress = progress_of(bar)
                evidence.add(portion, self.pool)
                bar.note = plural(len(evidence.growing.prompt_ids), "prompt")
            if evidence.enough(self.pool):
                break
        assert evidence is not None, "a pool has prompts"
        return evidence.result(self._searched, self.sampled)

    def _require_targets(self) -> None:
        """Raise InputError for a target without a gradient, before its pool is sampled."""
        if self.needs.direction != "pool":
            targets = target_rollouts(self.needs, self.before)
            informative_targets(targets, self.step.scorer.settings.objective)

    def _evidence(self, hidden_states: NDArray[np.float32] | None) -> PoolEvidence:
        """What scores the portions, once the policy has left sampling."""
        step, policy = self.step, self.step.policies.load(self.policy)
        targets = target_rollouts(self.needs, self.before)
        growing = step.scorer.growing_pool(self.stage, self.needs, policy, self.policy, targets)
        return PoolEvidence(growing, self.settings, hidden_states, step.threshold)

    @property
    def _searched(self) -> str:
        """What a sentence calls the prompts that may be sampled."""
        size, most = len(self.before.pool), self.needs.most
        if most is None or most >= size:
            return "the pool"
        return f"the part of the pool that is sampled (most={most} of {size:,}; raise most)"

    def _portion(self, name: str, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """The responses to a portion's prompts."""
        step, arm = self.step, self.stage.arm
        if all(prompt.prompt_id in self.stored for prompt in prompts):
            return [self.stored[prompt.prompt_id] for prompt in prompts]
        request = replace(step.pool, name=name, prompts=prompts, arms=[arm])
        with step.policies.reference(self.policy) as policy:  # leaves the device to scoring
            return step.sampler.sample(
                lambda: policy,
                step.policies.key(self.policy),
                request,
                self._portion_file(name),
                listed=False,
            )

    def _portion_file(self, name: str) -> Path:
        return self.stage.rollouts("pool", name)


class PoolEvidence:
    """What the portions of a pool say so far; `hidden_states` [L, P, F] are of all its prompts."""

    def __init__(
        self,
        growing: GrowingPool,
        settings: SelectionConfig,
        hidden_states: NDArray[np.float32] | None,
        threshold: float | None = None,
    ) -> None:
        self.growing, self.settings = growing, settings
        self.hidden_states, self.threshold = hidden_states, threshold
        self.influence: Influence | None = None

    def add(self, portion: Sequence[RolloutGroup], pool: Sequence[RolloutGroup]) -> None:
        """Score a portion of the `pool`, whose other groups have the responses of those before."""
        if any(group.informative for group in portion):
            self.growing.add(portion)
        if self.growing.portions:
            self.influence = self.growing.influence(pool)

    def enough(self, pool: Sequence[RolloutGroup]) -> bool:
        """Whether the strategy needs no more."""
        return self.influence is not None and enough(
            self.influence,
            self.settings,
            rollouts=pool,
            hidden_states=self.hidden_states,
            threshold=self.threshold,
        )

    def result(self, what: str, sampled: Sequence[RolloutGroup]) -> Influence:
        """The influence. Raises InputError, naming `what`, if no prompt was informative."""
        if self.influence is None:
            require_informative(what, sampled, self.growing.scorer.objective)
        assert self.influence is not None
        return self.influence


def sampled_portions(
    prompts: Sequence[Prompt], needs: Needs, seed: int
) -> Iterator[tuple[str, list[Prompt]]]:
    """The portions of a pool in a random order, each with a name."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    for begin, end in portions(len(prompts), needs):
        yield f"{begin}-{end}", [prompts[place] for place in order[begin:end]]


def portions(size: int, needs: Needs) -> Iterator[tuple[int, int]]:
    """Where each portion of a pool begins and ends: the first, then as many as before, doubled."""
    most, begin, end = min(size, needs.most or size), 0, needs.sample
    while begin < most:
        end = min(end, most)
        yield begin, end
        begin, end = end, 2 * end
