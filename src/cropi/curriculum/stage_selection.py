"""Steps 4 and 5, before every stage: influence under the current policy, and the selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.policies import Policies
from cropi.curriculum.pool_forward_passes import CurrentRates, prompt_tokens, read_current_rates
from cropi.curriculum.run_context import RunLog, Seeds
from cropi.curriculum.stage_rollouts import StageRollouts, pool_files_so_far
from cropi.execution import Executor
from cropi.influence.cosines import Influence
from cropi.influence.growing_pool import GrowingPool
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import growing_pool
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.progress import Bar, PhaseProgress
from cropi.prompts import PromptSets
from cropi.schema import InfluenceEstimate, RolloutGroup, Selection
from cropi.selection import Needs, find_strategy, needs_of, select
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.selection.strategy import POOL_DIRECTION
from cropi.store.cached import cached, stamp
from cropi.store.files import file_hash, remove, write_json
from cropi.store.run_directory import Stage
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection
from cropi.text import plural

HiddenStates = Callable[[], NDArray[np.float32]]
"""Reads the hidden states [L, P, F] of the start policy at the pool's prompts."""


@dataclass(frozen=True)
class StageScorer:
    """Scores the pool under a stage's policy.

    `result_settings` are those of `settings` that decide results, `seed` is the sketch's, and
    `longest_response` the divisor of the "constant" normalisation, in tokens.
    """

    settings: InfluenceConfig
    result_settings: Mapping[str, Any]
    seed: int
    longest_response: int
    policies: Policies
    log: RunLog
    executor: Executor | None = None

    def scores(
        self, stage: Stage, needs: Needs, policy: str, rollouts: StageRollouts
    ) -> InfluenceEstimate | None:
        """Return the scores that a strategy needs, read from their file if it is current."""
        if needs.scoring == "never":
            return None
        if needs.scoring == "once" and stage.index > 0:
            return read_scores(stage.sibling(0).scores)
        return self.stored(
            stage, needs, policy, rollouts, lambda: self._influence(stage, needs, policy, rollouts)
        )

    def stored(
        self,
        stage: Stage,
        needs: Needs,
        policy: str,
        rollouts: StageRollouts,
        measure: Callable[[], Influence],
    ) -> InfluenceEstimate:
        """The scores of a stage from their file, made with `measure` unless it is current."""
        inputs = (self.policies.key(policy), rollouts.key, *self.inputs(needs))

        def compute(inputs_fingerprint: str) -> None:
            influence = measure()
            self.log.warn(_notes(influence, needs))
            read = _hidden_state_tokens(stage, needs, rollouts)
            write_json(stage.influence_facts, _facts(influence, needs, read))
            write_scores(stage.scores, influence.estimate, stamp(inputs_fingerprint))
            remove(_shards(stage))

        def facts() -> list[Path]:
            return [stage.influence_facts]

        return read_scores(cached(stage.scores, inputs, compute, self.log.directory.ledger, facts))

    def _influence(
        self, stage: Stage, needs: Needs, policy: str, rollouts: StageRollouts
    ) -> Influence:
        with self.phase(stage) as bar:
            targets = target_rollouts(needs, rollouts)
            growing = self.growing_pool(
                stage, needs, self.policies.reference(policy), policy, targets
            )
            growing.scorer.progress = progress_of(bar)
            growing.add(rollouts.pool)
            influence = growing.influence(rollouts.pool)
            scored = int(influence.estimate.is_scored.sum())
            bar.note = f"{plural(scored, 'prompt')}, {influence.tokens:,} tokens"
        return influence

    def inputs(self, needs: Needs) -> tuple[Any, ...]:
        """What decides scores beside policy and rollouts."""
        return needs.direction, needs.metric, self.result_settings, self.seed

    def phase(self, stage: Stage) -> AbstractContextManager[Bar]:
        """Show and time scoring."""
        return self.log.phase(f"{stage.title} influence", "scoring", stage)

    def growing_pool(
        self,
        stage: Stage,
        needs: Needs,
        policy: Policy | PolicyRef,
        checkpoint: str,
        targets: Mapping[str, Sequence[RolloutGroup]],
    ) -> GrowingPool:
        """What scores the pool under a policy of this checkpoint, in one portion or in several."""
        elsewhere = self.executor is not None  # workers load it themselves
        return growing_pool(
            self.policies.reference(checkpoint) if elsewhere else policy,
            targets,
            self._settings_at(stage, needs),
            seed=self.seed,
            constant_length=self.longest_response,
            checkpoint=checkpoint,
            executor=self.executor,
            folder=_shards(stage),
        )

    def _settings_at(self, stage: Stage, needs: Needs) -> InfluenceConfig:
        """The settings, without Adam in the first stage, when nothing has been trained yet."""
        settings = influence_settings(needs, self.settings)
        if stage.index > 0 or settings.precondition == "none":
            return settings
        self.log.warn(
            [
                "influence.precondition begins with the second stage: the start policy has no Adam "
                "state"
            ]
        )
        return settings.model_copy(update={"precondition": "none"})


def _shards(stage: Stage) -> Path:
    """Where workers leave what they have measured, until the scores are written."""
    return stage.scores.with_suffix(".shards")


def progress_of(bar: Bar) -> PhaseProgress:
    """Shows the progress of scoring."""
    return lambda phase, done, total: bar.update(done, total, note=phase)


def influence_settings(needs: Needs, settings: InfluenceConfig) -> InfluenceConfig:
    """The settings, with what a strategy asks for whatever they say.

    A mean cosine with the pool is the cosine with its mean unit gradient.
    """
    asked: dict[str, str] = {}
    if needs.direction == "pool":
        asked["target"] = "unit_mean"
    if needs.metric is not None:
        asked["metric"] = needs.metric
    return settings.model_copy(update=asked)


def target_rollouts(needs: Needs, rollouts: StageRollouts) -> dict[str, list[RolloutGroup]]:
    """Return the rollouts that a strategy compares the pool's with, by the target's name."""
    if needs.direction == "pool":
        return {POOL_DIRECTION: rollouts.pool}
    if needs.direction == "mean":
        return {"validation": [g for groups in rollouts.validation.values() for g in groups]}
    return rollouts.validation


def _notes(influence: Influence, needs: Needs) -> list[str]:
    """The warnings; those about targets do not apply where the pool is a target."""
    return influence.notes if needs.validation else influence.number_notes


def _hidden_state_tokens(stage: Stage, needs: Needs, rollouts: StageRollouts) -> int:
    """Tokens of the forward pass that reads hidden states before a stage."""
    return prompt_tokens(rollouts.pool) if needs.hidden_states and stage.index == 0 else 0


def _facts(influence: Influence, needs: Needs, hidden_state_tokens: int) -> dict[str, object]:
    """A stage's influence.json.

    `tokens` went forward and backward through the model, `forward_tokens` forward alone.
    """
    return {
        "tokens": influence.tokens,
        "forward_tokens": hidden_state_tokens,
        "targets": {name: dataclasses.asdict(t) for name, t in influence.reliability.items()},
        "notes": _notes(influence, needs),
    }


@dataclass(frozen=True)
class PromptSelector:
    """Chooses the prompts of a stage.

    `visits` is how many prompts a stage's steps read, and `group_size` how many responses to each
    they sample; `threshold` turns rewards into passes;
    `batch_tokens` bounds the forward passes of strategies that read the policy without scoring.
    """

    settings: SelectionConfig
    visits: int
    group_size: int
    sets: PromptSets
    threshold: float | None
    batch_tokens: int | None
    policies: Policies
    seeds: Seeds
    log: RunLog

    def selection(
        self,
        stage: Stage,
        strategy: StrategyChoice,
        scores: InfluenceEstimate | None,
        rollouts: StageRollouts,
        policy: str,
        hidden_states: HiddenStates,
    ) -> Selection:
        """Return the stage's selection by a strategy, read from its file if it is current."""
        needs = needs_of(find_strategy(strategy))
        earlier = _earlier_scores(stage, scores) if needs.earlier else []
        remembers = needs.history or needs.current
        history = pool_files_so_far(self.log.directory, stage, needs) if remembers else []
        inputs = (
            rollouts.key,
            [file_hash(path) for path in earlier],
            [file_hash(path) for path in (stage.scores, stage.sibling(0).scores) if path.exists()],
            strategy.model_dump(),
            self.settings.ratio,
            self.visits,
            self.group_size,
            self.threshold,
            stage.arm,
            stage.index,
            self.seeds.run,
            *([self.policies.key(policy)] if needs.current else []),
            *(file_hash(path) for path in history),
        )
        # A strategy that scores has counted what it reads there.
        reads_unscored = needs.scoring == "never" and (needs.hidden_states or needs.current)

        def choose(inputs_fingerprint: str) -> None:
            current = self._current(policy, rollouts, history) if needs.current else None
            if reads_unscored:
                read = _hidden_state_tokens(stage, needs, rollouts)
                read += current.tokens if current else 0
                write_json(stage.influence_facts, {"forward_tokens": read})
            selection = self._select(
                stage,
                strategy,
                scores,
                rollouts,
                earlier=[read_scores(path) for path in earlier],
                hidden_states=hidden_states() if needs.hidden_states else None,
                current=current and current.rates,
                history=history,
            )
            write_selection(stage.selection, selection, stamp(inputs_fingerprint))
            notes = [*selection.notes, *_history_notes(stage, history)]
            self.log.warn([f"{stage.arm}: {note}" for note in notes])

        def facts() -> list[Path]:
            return [stage.influence_facts] if reads_unscored else []

        ledger = self.log.directory.ledger
        return read_selection(cached(stage.selection, inputs, choose, ledger, facts))

    def _current(
        self, policy: str, rollouts: StageRollouts, history: Sequence[Path]
    ) -> CurrentRates:
        model = self.policies.load(policy).model
        return read_current_rates(model, rollouts.pool, history, self.threshold, self.batch_tokens)

    def _select(
        self,
        stage: Stage,
        strategy: StrategyChoice,
        scores: InfluenceEstimate | None,
        rollouts: StageRollouts,
        **evidence: Any,
    ) -> Selection:
        """Choose by these and by more `evidence`, as `select` takes it."""
        pool, validation = self.sets.pool, self.sets.validation.values()
        return select(
            scores,
            self.settings.model_copy(update={"strategy": strategy}),
            rollouts=rollouts.pool,
            sources={p.prompt_id: p.source for p in pool},
            target_sources={p.source for prompts in validation for p in prompts},
            threshold=self.threshold,
            stage=stage.index,
            visits=self.visits,
            group_size=self.group_size,
            seed=self.seeds.of("selection", stage.arm, stage.index),
            title=stage.title,
            **evidence,
        )


def _history_notes(stage: Stage, history: Sequence[Path]) -> list[str]:
    """What a strategy that remembers has to do without."""
    if not history or any(path.stem == "training" for path in history) or stage.index == 0:
        return []
    return [
        "the training engine reports no rollouts, so training's groups are missing from the history"
    ]


def _earlier_scores(stage: Stage, scores: InfluenceEstimate | None) -> list[Path]:
    """Scores of the stages before this one; empty for a strategy that scores only once."""
    if scores is None or not stage.scores.exists():
        return []
    paths = [stage.sibling(index).scores for index in range(stage.index)]
    return [path for path in paths if path.exists()]
