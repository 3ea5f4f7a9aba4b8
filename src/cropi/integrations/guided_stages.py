"""Stages of influence-guided data for a model that something else trains.

Responses to pool and validation prompts are sampled once, from the model as it is when the first
stage is asked for: to as many of the pool as the strategy needs. A stage's selection is made from
those and the model as it is then. Everything is in one folder, from which a training that was
stopped goes on:

    rollouts/NAME.parquet      pool and targets; NAME.N-of-M.parquet while they are sampled;
                               of a pool that is sampled in portions pool.FIRST-LAST.parquet
    stages/M/scores.parquet    stages/M/selection.parquet
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.pool_sample import portions
from cropi.curriculum.stage_choice import influence_settings, target_rollouts
from cropi.curriculum.stage_rollouts import StageRollouts, replace_groups
from cropi.curriculum.trackers import selection_values
from cropi.errors import InputError
from cropi.estimation.evidence import with_pooled_errors
from cropi.influence.growing_pool import GrowingPool
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import growing_pool, score
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.policy.representations import prompt_features
from cropi.prompts.encoding import encode_all
from cropi.rollouts import load_engine, read_rollouts, write_rollouts
from cropi.rollouts.collect import collect
from cropi.rollouts.judged_groups import SamplingPlan
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import (
    InfluenceEstimate,
    Prompt,
    RolloutGroup,
    Selection,
    derive_seed,
    fingerprint,
)
from cropi.selection import enough, find_strategy, needs_of, select
from cropi.selection.settings import SelectionConfig
from cropi.store.files import read_table, table_metadata
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection
from cropi.training.process_group import ProcessGroup
from cropi.verifiers.verdict import Grader

POOL = "pool"
STEP = "cropi.step"
"""Key of a selection's metadata: optimizer steps that the model had made."""


@dataclass(frozen=True)
class GuideSettings:
    """How stages are chosen: the sections of a run's config, and the seed of all that is drawn."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    influence: InfluenceConfig = field(default_factory=InfluenceConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


class GuidedStages:
    """The selections of a training's stages, made in all of its processes together.

    Args:
        folder: where everything is kept; every process reads and writes it.
        pool: what is selected from.
        targets: prompts to get better at, by the target's name.
        settings: how.
    """

    def __init__(
        self,
        folder: Path,
        pool: Sequence[Prompt],
        targets: Mapping[str, Sequence[Prompt]],
        settings: GuideSettings,
    ) -> None:
        self.folder = folder
        self.sets = {POOL: pool, **targets}
        self.settings = settings
        self.strategy = find_strategy(settings.selection.strategy)
        self.needs = needs_of(self.strategy)
        self.processes = ProcessGroup()

    def selection(self, index: int, step: int, policy: Policy, grader: Grader) -> Selection:
        """Return a stage's selection: the one made before this step, or a new one.

        Every process calls this with its own copy of the policy, after `step` optimizer steps.
        """
        path = self._stage(index) / "selection.parquet"
        made_at = self.processes.by_first(lambda: _step_of(path))
        if made_at is not None and made_at < step:
            return read_selection(path)
        sampling = _Sampling(step, policy, grader)
        groups = {
            name: self._rollouts(name, prompts, sampling)
            for name, prompts in self.sets.items()
            if name != POOL and self.needs.validation
        }
        if self.needs.sample:
            groups[POOL] = self._grown(sampling, groups, first=index == 0)
        elif self.needs.rollouts:
            groups[POOL] = self._rollouts(POOL, self.sets[POOL], sampling)
        estimate = self._estimate(index, policy, {POOL: [], **groups})

        def choose() -> Selection:
            selection = self._select(index, estimate, groups.get(POOL, []), policy)
            if estimate is not None:
                write_scores(self._stage(index) / "scores.parquet", estimate)
            write_selection(path, selection, {STEP: str(step)})
            for note in selection.notes:
                warnings.warn(f"stage {index}: {note}", stacklevel=2)
            return selection

        return self.processes.by_first(choose)

    def facts(self, index: int) -> dict[str, float]:
        """What a stage selected, in numbers."""
        scores = self._stage(index) / "scores.parquet"
        selection = read_selection(self._stage(index) / "selection.parquet")
        return selection_values(selection, read_scores(scores) if scores.is_file() else None)

    def _stage(self, index: int) -> Path:
        return self.folder / "stages" / str(index)

    def _grown(
        self, sampling: _Sampling, validation: Mapping[str, list[RolloutGroup]], first: bool
    ) -> list[RolloutGroup]:
        """The pool, with responses of as many prompts as the strategy needs (`PoolSample`).

        They are sampled before the `first` stage; later on they are those that are there.
        """
        policy, prompts = sampling.policy, self.sets[POOL]
        encoded = encode_all(policy.tokenizer, prompts, self.settings.template_kwargs)
        pool = [
            RolloutGroup(prompt.prompt_id, np.array(ids, np.int32), [])
            for prompt, ids in zip(prompts, encoded, strict=True)
        ]
        draw = np.random.default_rng(derive_seed(self.settings.seed, "rollouts", "sample"))
        order = draw.permutation(len(prompts))
        evidence = _Evidence(self, policy, pool, validation)
        for begin, end in portions(len(prompts), self.needs):
            name = f"{POOL}.{begin}-{end}"
            if not first and not self._file(name).is_file():
                break
            portion = self._rollouts(name, [prompts[place] for place in order[begin:end]], sampling)
            pool = replace_groups(pool, portion)
            if first and self.processes.by_first(partial(evidence.enough, portion, pool)):
                break
        return pool

    def _file(self, name: str) -> Path:
        return self.folder / "rollouts" / f"{name}.parquet"

    def _rollouts(
        self, name: str, prompts: Sequence[Prompt], sampling: _Sampling
    ) -> list[RolloutGroup]:
        """A set's responses: sampled before, or now, each process its share of the prompts."""
        out, settings = self._file(name), self.settings.rollouts
        step, policy, grader = sampling.step, sampling.policy, sampling.grader
        asked = [(p.prompt_id, p.content, p.answer) for p in prompts]
        key = fingerprint(asked, settings.model_dump(), self.settings.seed)
        # Later on, the weights are no longer those that sampled, and the responses as good.
        start = {} if step else {"weights": policy.identity.revision}
        if self.processes.by_first(lambda: _is_of(out, key, start)):
            return read_rollouts(out)
        count, place = self.processes.count, self.processes.index
        parts = [out.with_name(f"{name}.{i}-of-{count}.parquet") for i in range(count)]
        plan = SamplingPlan(
            settings.sampling,
            settings.responses,
            derive_seed(self.settings.seed, "rollouts", name, place),
            self.settings.template_kwargs,
        )
        made_from = fingerprint(key, policy.identity.revision, place)

        def sample() -> None:
            if share := self.processes.share(prompts):
                engine = load_engine(settings.engine, policy)
                reference = PolicyRef.of(policy)
                collect(engine, reference, share, grader, plan, parts[place], made_from)

        def join() -> list[RolloutGroup]:
            by_id = {
                g.prompt_id: g for part in parts if part.is_file() for g in read_rollouts(part)
            }
            groups = [by_id[prompt.prompt_id] for prompt in prompts]
            about = {"cropi.prompts": key, "cropi.weights": policy.identity.revision}
            write_rollouts(out, groups, about)
            for part in parts:
                part.unlink(missing_ok=True)
            return groups

        self.processes.together(sample)
        self.processes.by_first(lambda: len(join()))
        return read_rollouts(out)

    def _estimate(
        self, index: int, policy: Policy, groups: Mapping[str, list[RolloutGroup]]
    ) -> InfluenceEstimate | None:
        """The pool's influence, each process its share; None for a strategy that needs none."""
        if self.needs.scoring == "never":
            return None
        if self.needs.scoring == "once" and index:
            return read_scores(self._stage(0) / "scores.parquet")
        pool = groups[POOL]
        validation = {name: each for name, each in groups.items() if name != POOL}
        targets = target_rollouts(self.needs, StageRollouts(pool, validation, []))
        # Informative prompts first, so that every process has some.
        shared = sorted(pool, key=lambda group: not group.informative)
        busy = max(1, min(self.processes.count, sum(group.informative for group in pool)))
        settings = influence_settings(self.needs, self.settings.influence)
        if settings.metric == "whitened":
            busy = 1  # every prompt is compared with all others

        def measure() -> InfluenceEstimate | None:
            if self.processes.index >= busy:
                return None
            share = shared[self.processes.index :: busy]
            influence = score(policy, share, targets, settings, seed=self.settings.seed)
            for note in influence.notes if self.processes.index == 0 else []:
                warnings.warn(note, stacklevel=2)
            return influence.estimate

        parts = [part for part in self.processes.together(measure) if part is not None]
        return joined(parts, [group.prompt_id for group in pool])

    def _select(
        self,
        index: int,
        estimate: InfluenceEstimate | None,
        pool: Sequence[RolloutGroup],
        policy: Policy,
    ) -> Selection:
        earlier = [self._stage(i) / "scores.parquet" for i in range(index)]
        return select(
            estimate,
            self.settings.selection,
            earlier=[read_scores(each) for each in earlier if each.is_file()]
            if self.needs.earlier
            else [],
            rollouts=pool,
            sources={prompt.prompt_id: prompt.source for prompt in self.sets[POOL]},
            features=prompt_features(policy.model, pool) if self.needs.features else None,
            stage=index,
            seed=derive_seed(self.settings.seed, "selection", index),
            title=f"stage {index}",
        )


@dataclass(frozen=True)
class _Sampling:
    """What a set is sampled with now: the model after `step` optimizer steps, and its judge."""

    step: int
    policy: Policy
    grader: Grader


class _Evidence:
    """What the portions of a pool say so far, in the one process that scores them."""

    def __init__(
        self,
        stages: GuidedStages,
        policy: Policy,
        pool: Sequence[RolloutGroup],
        validation: Mapping[str, list[RolloutGroup]],
    ) -> None:
        self.stages, self.policy, self.pool, self.validation = stages, policy, pool, validation

    @cached_property
    def growing(self) -> GrowingPool:
        """What scores the portions."""
        needs, settings = self.stages.needs, self.stages.settings
        return growing_pool(
            self.policy,
            target_rollouts(needs, StageRollouts([], dict(self.validation), [])),
            influence_settings(needs, settings.influence),
            seed=settings.seed,
            constant_length=settings.rollouts.max_new_tokens,
        )

    @cached_property
    def features(self) -> NDArray[np.float64] | None:
        """Of the pool's prompts, if the strategy looks at them."""
        return prompt_features(self.policy.model, self.pool) if self.stages.needs.features else None

    def enough(self, portion: Sequence[RolloutGroup], pool: Sequence[RolloutGroup]) -> bool:
        """Whether the strategy needs no more than this portion and those before."""
        if any(group.informative for group in portion):
            self.growing.add(portion)
        if not self.growing.portions:
            return False
        influence = self.growing.influence(pool)
        selection = self.stages.settings.selection
        return enough(influence, selection, rollouts=pool, features=self.features)


def joined(parts: Sequence[InfluenceEstimate], prompt_ids: Sequence[str]) -> InfluenceEstimate:
    """One estimate of a whole pool from those of its parts, in the pool's order."""
    place = {name: n for n, name in enumerate(name for part in parts for name in part.prompt_ids)}
    order = [place[name] for name in prompt_ids]

    def together(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, np.ndarray):
            return np.concatenate(values)[order]
        if isinstance(first, list):
            flat = [each for value in values for each in value]
            return [flat[number] for number in order]
        if isinstance(first, dict) and _is_by_prompt(first):
            return {name: together([value[name] for value in values]) for name in first}
        return first

    whole = {f.name: together([getattr(p, f.name) for p in parts]) for f in fields(parts[0])}
    estimate = InfluenceEstimate(**whole)
    # Errors that are not a prompt's own are the scale of the whole pool's cosines.
    return estimate if estimate.responses else with_pooled_errors(estimate)


def _is_by_prompt(values: Mapping[str, Any]) -> bool:
    """Whether a field holds something about each prompt, by target."""
    return any(isinstance(value, np.ndarray | list) for value in values.values())


def _is_of(path: Path, key: str, more: Mapping[str, str]) -> bool:
    """Whether a rollout file holds what is wanted."""
    if not path.is_file():
        return False
    about = table_metadata(read_table(path))
    wanted = {"cropi.prompts": key, **{f"cropi.{name}": value for name, value in more.items()}}
    return all(about.get(name) == value for name, value in wanted.items())


def _step_of(path: Path) -> int | None:
    """The step at which a selection was made; None if there is none."""
    if not path.is_file():
        return None
    text = table_metadata(read_table(path)).get(STEP, "")
    if not text.isdecimal():
        raise InputError(f"{path} was not made by a training; remove it, or give another folder")
    return int(text)
