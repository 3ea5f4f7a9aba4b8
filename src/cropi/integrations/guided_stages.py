"""Stages of influence-guided data for a model that something else trains.

Responses to pool and validation prompts are sampled once, from the model as it is when the first
stage is asked for: to as many of the pool as the strategy needs. A stage's selection is made from
those and the model as it is then. Everything is in one folder, from which a training that was
stopped continues:

    rollouts/NAME.parquet      pool and targets; NAME.N-of-M.parquet while they are sampled;
                               of a pool that is sampled in portions pool.FIRST-LAST.parquet
    hidden_states.parquet      hidden states of the model at the pool's prompts, where needed
    stages/M/scores.parquet    stages/M/selection.parquet
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.pool_sample import PoolEvidence, sampled_portions
from cropi.curriculum.stage_rollouts import StageRollouts, replace_groups
from cropi.curriculum.stage_selection import influence_settings, target_rollouts
from cropi.curriculum.start_rollouts import unsampled
from cropi.curriculum.trackers import selection_values
from cropi.errors import InputError
from cropi.estimation.noise import joined_estimates
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import growing_pool, score
from cropi.policy.hidden_states import prompt_hidden_states
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.progress import ProgressReporter
from cropi.prompts.sets import POOL
from cropi.rollouts import load_engine, read_rollouts, write_rollouts
from cropi.rollouts.collect import collect
from cropi.rollouts.judged_groups import SamplingPlan
from cropi.rollouts.settings import RolloutsConfig
from cropi.rollouts.statistics import GROUP_SIZE, RewardedGroup, pass_history
from cropi.schema import (
    InfluenceEstimate,
    Prompt,
    RolloutGroup,
    Selection,
    derive_seed,
    fingerprint,
)
from cropi.selection import find_strategy, needs_of, select
from cropi.selection.settings import SelectionConfig
from cropi.store.files import read_table, table_metadata
from cropi.store.tables import (
    read_hidden_states,
    read_scores,
    read_selection,
    write_hidden_states,
    write_scores,
    write_selection,
)
from cropi.text import plural
from cropi.training.process_group import ProcessGroup
from cropi.verifiers.verdict import Grader

STEP = "cropi.step"
"""Key of a selection's metadata: optimizer steps that the model had made."""


@dataclass(frozen=True)
class GuideSettings:
    """How stages are chosen that sample `group_size` responses to each of `visits` prompts."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    influence: InfluenceConfig = field(default_factory=InfluenceConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    visits: int | None = None
    group_size: int = GROUP_SIZE


class GuidedStages:
    """The selections of a training's stages, made in all of its processes together.

    Args:
        folder: where everything is kept; every process reads and writes it.
        pool: what is selected from.
        targets: prompts to get better at, by the target's name.
        settings: how.
        reporter: what says how far the sampling and the scoring are, in the first process.
    """

    def __init__(
        self,
        folder: Path,
        pool: Sequence[Prompt],
        targets: Mapping[str, Sequence[Prompt]],
        settings: GuideSettings,
        reporter: ProgressReporter | None = None,
    ) -> None:
        self.folder = folder
        self.sets = {POOL: pool, **targets}
        self.settings = settings
        self.strategy = find_strategy(settings.selection.strategy)
        self.needs = needs_of(self.strategy)
        self.processes = ProcessGroup()
        first = self.processes.index == 0
        self.reporter = (reporter if first else None) or ProgressReporter()

    def selection(
        self,
        index: int,
        step: int,
        policy: Policy,
        grader: Grader,
        trained: Sequence[Sequence[RewardedGroup]] = (),
    ) -> Selection:
        """Return a stage's selection: the one made before this step, or a new one.

        Every process calls this with its own copy of the policy, after `step` optimizer steps.
        `trained` are the groups that training sampled in the stages before; the first process's
        count.
        """
        path = self._stage(index) / "selection.parquet"
        made_at = self.processes.by_first(lambda: _step_of(path))
        if made_at is not None and made_at < step:
            return read_selection(path)
        sampling = _Sampling(step, policy, grader)
        validation = {
            name: self._set_rollouts(name, prompts, sampling)
            for name, prompts in self.sets.items()
            if name != POOL and self.needs.validation
        }
        pool_rollouts = _PoolRollouts([])
        if self.needs.sample:
            pool_rollouts = self._sampled_pool(sampling, validation, first=index == 0)
        elif self.needs.rollouts:
            pool_rollouts = _PoolRollouts(self._set_rollouts(POOL, self.sets[POOL], sampling))
        pool, estimate = pool_rollouts.pool, pool_rollouts.estimate
        if estimate is None:
            estimate = self._estimate(index, policy, pool, validation)

        def choose() -> Selection:
            hidden_states = (
                self._hidden_states(sampling, pool) if self.needs.hidden_states else None
            )
            selection = self._select(index, estimate, pool, hidden_states, trained)
            if estimate is not None:
                write_scores(self._stage(index) / "scores.parquet", estimate)
            write_selection(path, selection, {STEP: str(step)})
            for note in selection.notes:
                self._warn(f"stage {index}: {note}")
            return selection

        return self.processes.by_first(choose)

    def facts(self, index: int) -> dict[str, float]:
        """What a stage selected, in numbers."""
        scores = self._stage(index) / "scores.parquet"
        selection = read_selection(self._stage(index) / "selection.parquet")
        return selection_values(selection, read_scores(scores) if scores.is_file() else None)

    def _stage(self, index: int) -> Path:
        return self.folder / "stages" / str(index)

    def _sampled_pool(
        self, sampling: _Sampling, validation: dict[str, list[RolloutGroup]], first: bool
    ) -> _PoolRollouts:
        """The pool, with responses of as many prompts as the strategy needs (`PoolSample`).

        They are sampled and scored before the `first` stage; later on they are those that are
        there.
        """
        prompts, settings = self.sets[POOL], self.settings
        pool = unsampled(sampling.policy.tokenizer, prompts, settings.template_kwargs)
        evidence = cache(lambda: self._evidence(sampling, pool, validation))
        seed = derive_seed(settings.seed, "rollouts", "sample")
        sampled: list[RolloutGroup] = []

        def enough_with(portion: Sequence[RolloutGroup], groups: Sequence[RolloutGroup]) -> bool:
            with self.reporter.phase("cropi: influence") as bar:
                evidence().add(portion, groups)
                bar.note = plural(len(portion), "prompt")
                return evidence().enough(groups)

        grown = pool
        for name, portion_prompts in sampled_portions(prompts, self.needs, seed):
            if not first and not self._rollout_file(f"{POOL}.{name}").is_file():
                break
            portion = self._set_rollouts(f"{POOL}.{name}", portion_prompts, sampling)
            sampled += portion
            grown = replace_groups(grown, portion)
            if first and self.processes.by_first(partial(enough_with, portion, grown)):
                break
        if not first:
            return _PoolRollouts(grown)

        def estimate() -> InfluenceEstimate:
            influence = evidence().result("the pool", sampled)
            for note in influence.notes:
                self._warn(note)
            return influence.estimate

        return _PoolRollouts(grown, self.processes.by_first(estimate))

    def _warn(self, text: str) -> None:
        """Warn, without the line of our code that a Python warning shows."""
        if self.reporter.console is None:
            warnings.warn(text, stacklevel=2)
        self.reporter.warn(f"cropi: {text}")

    def _evidence(
        self,
        sampling: _Sampling,
        pool: Sequence[RolloutGroup],
        validation: dict[str, list[RolloutGroup]],
    ) -> PoolEvidence:
        """The evidence that portions of the pool add to; only the first process has it."""
        settings = self.settings
        growing = growing_pool(
            sampling.policy,
            target_rollouts(self.needs, StageRollouts([], validation, [])),
            influence_settings(self.needs, settings.influence),
            seed=settings.seed,
            constant_length=settings.rollouts.max_new_tokens,
        )
        hidden_states = self._hidden_states(sampling, pool) if self.needs.hidden_states else None
        return PoolEvidence(growing, settings.selection, hidden_states)

    def _hidden_states(
        self, sampling: _Sampling, pool: Sequence[RolloutGroup]
    ) -> NDArray[np.float32]:
        """Hidden states [L, P, F] of the model at the pool's prompts, before the first stage."""
        path = self.folder / "hidden_states.parquet"
        key = fingerprint([(group.prompt_id, group.prompt_ids.tolist()) for group in pool])
        if not _is_current(path, key, sampling.weights):
            ids = [group.prompt_id for group in pool]
            hidden_states = prompt_hidden_states(sampling.policy.model, pool)
            write_hidden_states(path, ids, hidden_states, _metadata(key, sampling.policy))
        return read_hidden_states(path)

    def _rollout_file(self, name: str) -> Path:
        return self.folder / "rollouts" / f"{name}.parquet"

    def _set_rollouts(
        self, name: str, prompts: Sequence[Prompt], sampling: _Sampling
    ) -> list[RolloutGroup]:
        """The responses to a set: read, or sampled now, each process a share of the prompts."""
        out, settings = self._rollout_file(name), self.settings.rollouts
        policy, grader = sampling.policy, sampling.grader
        contents = [(p.prompt_id, p.content, p.answer) for p in prompts]
        key = fingerprint(contents, settings.model_dump(), self.settings.seed)
        if self.processes.by_first(lambda: _is_current(out, key, sampling.weights)):
            return read_rollouts(out)
        count, process = self.processes.count, self.processes.index
        parts = [out.with_name(f"{name}.{i}-of-{count}.parquet") for i in range(count)]
        plan = SamplingPlan(
            settings.sampling,
            settings.responses,
            derive_seed(self.settings.seed, "rollouts", name, process),
            self.settings.template_kwargs,
        )
        part_key = fingerprint(key, policy.identity.revision, process)

        def sample() -> None:
            if share := self.processes.share(prompts):
                engine = load_engine(settings.engine, policy)
                reference, part = PolicyRef.of(policy), parts[process]
                with self.reporter.phase(f"cropi: rollouts of {name}", len(share)) as bar:
                    collect(engine, reference, share, grader, plan, part, part_key, bar.update)
                    bar.note = plural(len(share), "prompt")

        def join() -> list[RolloutGroup]:
            by_id = {
                g.prompt_id: g for part in parts if part.is_file() for g in read_rollouts(part)
            }
            groups = [by_id[prompt.prompt_id] for prompt in prompts]
            write_rollouts(out, groups, _metadata(key, policy))
            for part in parts:
                part.unlink(missing_ok=True)
            return groups

        self.processes.together(sample)
        self.processes.by_first(lambda: len(join()))
        return read_rollouts(out)

    def _estimate(
        self,
        index: int,
        policy: Policy,
        pool: list[RolloutGroup],
        validation: dict[str, list[RolloutGroup]],
    ) -> InfluenceEstimate | None:
        """The pool's influence, a share by each process; None for a strategy that needs none."""
        if self.needs.scoring == "never":
            return None
        if self.needs.scoring == "once" and index:
            return read_scores(self._stage(0) / "scores.parquet")
        targets = target_rollouts(self.needs, StageRollouts(pool, validation, []))
        # Informative prompts come first, so that every process gets some.
        shared = sorted(pool, key=lambda group: not group.informative)
        busy = max(1, min(self.processes.count, sum(group.informative for group in pool)))
        settings = influence_settings(self.needs, self.settings.influence)
        if settings.metric == "whitened":
            busy = 1  # every prompt is compared with all others

        def measure() -> InfluenceEstimate | None:
            if self.processes.index >= busy:
                return None
            share = shared[self.processes.index :: busy]
            with self.reporter.phase("cropi: influence") as bar:
                influence = score(policy, share, targets, settings, seed=self.settings.seed)
                bar.note = plural(len(share), "prompt")
            for note in influence.notes if self.processes.index == 0 else []:
                self._warn(note)
            return influence.estimate

        parts = [part for part in self.processes.together(measure) if part is not None]
        return joined_estimates(parts, [group.prompt_id for group in pool])

    def _select(
        self,
        index: int,
        estimate: InfluenceEstimate | None,
        pool: Sequence[RolloutGroup],
        hidden_states: NDArray[np.float32] | None,
        trained: Sequence[Sequence[RewardedGroup]],
    ) -> Selection:
        earlier = [self._stage(i) / "scores.parquet" for i in range(index)]
        ids, group_size = [group.prompt_id for group in pool], self.settings.group_size
        return select(
            estimate,
            self.settings.selection,
            earlier=[read_scores(each) for each in earlier if each.is_file()]
            if self.needs.earlier
            else [],
            rollouts=pool,
            sources={prompt.prompt_id: prompt.source for prompt in self.sets[POOL]},
            hidden_states=hidden_states,
            stage=index,
            visits=self.settings.visits,
            group_size=group_size,
            history=pass_history(ids, [pool, *trained], group_size=group_size)
            if self.needs.history
            else (),
            seed=derive_seed(self.settings.seed, "selection", index),
            title=f"stage {index}",
        )


@dataclass(frozen=True)
class _Sampling:
    """What a set is sampled with now: the model after `step` optimizer steps, and its judge."""

    step: int
    policy: Policy
    grader: Grader

    @property
    def weights(self) -> dict[str, str]:
        """The weights that must have made the folder's files: any after the first step."""
        return {} if self.step else {"weights": self.policy.identity.revision}


@dataclass(frozen=True)
class _PoolRollouts:
    """The rollouts of the pool, and their influence if it was measured with them."""

    pool: list[RolloutGroup]
    estimate: InfluenceEstimate | None = None


def _metadata(key: str, policy: Policy) -> dict[str, str]:
    """The metadata by which `_is_current` recognises a file."""
    return {"cropi.prompts": key, "cropi.weights": policy.identity.revision}


def _is_current(path: Path, key: str, more: Mapping[str, str]) -> bool:
    """Whether a file was made from these inputs, by this policy."""
    if not path.is_file():
        return False
    about = table_metadata(read_table(path))
    wanted = {"cropi.prompts": key, **{f"cropi.{name}": value for name, value in more.items()}}
    return all(about.get(name) == value for name, value in wanted.items())


def _step_of(path: Path) -> int | None:
    """The step after which a selection was made; None without a selection."""
    if not path.is_file():
        return None
    text = table_metadata(read_table(path)).get(STEP, "")
    if not text.isdecimal():
        raise InputError(f"{path} was not made by a training; remove it, or give another folder")
    return int(text)
