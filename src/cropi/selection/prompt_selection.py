"""Choosing the prompts of a stage from settings: one function for runs, API and commands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from cropi.arguments import SCORES_FIX, require_count, require_kind
from cropi.errors import InputError
from cropi.plugin_calls import PluginError, calling
from cropi.rollouts.statistics import (
    GROUP_SIZE,
    PassHistory,
    RolloutStatistics,
    pass_history,
    rollout_statistics,
)
from cropi.schema import NOT_SAMPLED, InfluenceEstimate, Prompt, RolloutGroup, Selection
from cropi.selection.checked_selection import checked_selection
from cropi.selection.settings import SCORES_ALONE, SelectionConfig, StrategyChoice
from cropi.selection.strategy import (
    Needs,
    SamplingStrategy,
    SelectionContext,
    find_strategy,
    needs_of,
    require_not_empty,
    selection_size,
)
from cropi.settings import given_or_default
from cropi.text import plural, shown

if TYPE_CHECKING:
    from cropi.influence.cosines import Influence


def select(
    scores: InfluenceEstimate | Influence | None = None,
    settings: SelectionConfig | None = None,
    *,
    earlier: Sequence[InfluenceEstimate] = (),
    rollouts: Sequence[RolloutGroup] | RolloutStatistics | str | Path | None = None,
    sources: Mapping[str, str] | None = None,
    target_sources: Collection[str] = (),
    hidden_states: NDArray[np.floating] | None = None,
    history: Sequence[Sequence[RolloutGroup] | str | Path] | PassHistory = (),
    current: NDArray[np.float64] | None = None,
    threshold: float | None = None,
    stage: int | None = None,
    visits: int | None = None,
    group_size: int = GROUP_SIZE,
    seed: int = 0,
    title: str = "",
) -> Selection:
    """Choose the prompts that a stage trains on.

    Args:
        scores: the pool's influence under the current policy, for strategies that need it.
        settings: the strategy and its options, and the share of the whole pool to select. Where no
            strategy is named and no hidden states are given, it is `ranking`, which needs scores
            alone.
        earlier: scores of the stages before, oldest first, for strategies with a memory.
        rollouts: the pool's, their file, or what is known of them, for strategies that look at
            pass rates.
        sources: the source of each prompt by its id, for strategies that look at sources.
        target_sources: sources of the validation prompts.
        hidden_states: hidden states at the pool's prompts, in the order of their rollouts, for
            strategies that look at them (`cropi.policy.hidden_states.prompt_hidden_states`).
        history: all rollouts of the pool's prompts so far, or their files, oldest first: the start
            policy's, then what each stage's training sampled; default: `rollouts` alone.
        current: pass rates under the current policy, in the order of the rollouts, for strategies
            that look at them (`cropi.rollouts.current_rates.current_pass_rates`).
        threshold: the reward at which a response passes; default: rewards are graded.
        stage: the stage's index; default: how many there are before it.
        visits: steps of the stage times prompts a step, by which `cropi` decides how many prompts
            to select; without it, the share that the settings name.
        group_size: responses that a training step samples to a prompt, which teach it something
            where their rewards differ.
        seed: of the stage, for strategies that draw.
        title: names the stage in errors; default: the strategy.

    Raises:
        InputError: scores or rollouts that the strategy needs are missing or of another pool, or it
            selects nothing.
    """
    from cropi.rollouts import as_groups  # loads pyarrow, which reading settings should not

    for argument, number in (("stage", stage), ("visits", visits), ("group_size", group_size)):
        if number is not None:
            require_count(number, argument, least=0)
    settings = _settings(given_or_default(settings, SelectionConfig, "settings"), hidden_states)
    estimate = _estimate(scores)
    strategy = find_strategy(settings.strategy)
    needs = needs_of(strategy)
    name = settings.strategy.name
    _require(needs, name, estimate, rollouts)
    _require_reading(needs, name, hidden_states, current)
    groups: Sequence[RolloutGroup] = []
    if isinstance(rollouts, RolloutStatistics):
        statistics = rollouts
    else:
        groups = [] if rollouts is None else as_groups(rollouts)
        statistics = rollout_statistics(groups, threshold)
    _require_one_pool(estimate, earlier, statistics.prompt_ids)
    pool_size = len(statistics.prompt_ids) or (estimate.pool_size if estimate else 0)
    pool = frozenset(statistics.prompt_ids or (estimate.prompt_ids if estimate else ()))
    context = SelectionContext(
        statistics=statistics,
        count=selection_size(settings.ratio, pool_size),
        stage=len(earlier) if stage is None else stage,
        visits=visits,
        group_size=group_size,
        seed=seed,
        estimate=estimate,
        earlier=earlier,
        sources=[(sources or {}).get(i, "") for i in statistics.prompt_ids],
        target_sources=frozenset(target_sources),
        hidden_states=hidden_states,
        history=_history(history, statistics, groups, threshold, group_size)
        if needs.history
        else None,
        current=current,
    )
    with calling("strategy", name, "select"):
        selection = checked_selection(strategy.select(context), name, pool)
    require_not_empty(selection, context, title or f"strategy {name}")
    return selection


def enough(
    scores: InfluenceEstimate | Influence,
    settings: SelectionConfig,
    *,
    rollouts: Sequence[RolloutGroup],
    hidden_states: NDArray[np.floating] | None,
    threshold: float | None = None,
) -> bool:
    """Whether a strategy that samples the pool has seen enough of it (`Needs.sample`).

    The arguments are those of `select`; `rollouts` has groups without responses for prompts that
    were not sampled.
    """
    statistics = rollout_statistics(rollouts, threshold)
    strategy = cast("SamplingStrategy", find_strategy(settings.strategy))
    context = SelectionContext(
        statistics=statistics,
        count=selection_size(settings.ratio, len(statistics.prompt_ids)),
        estimate=_estimate(scores),
        hidden_states=hidden_states,
    )
    with calling("strategy", settings.strategy.name, "enough"):
        answer = strategy.enough(context)
    if not isinstance(answer, bool | np.bool_):
        raise PluginError(
            settings.strategy.name,
            f"strategy {settings.strategy.name!r}: enough returned {shown(answer, 60)}, which is "
            "neither True nor False; it must return one of them",
        )
    return bool(answer)


def _history(
    history: Sequence[Sequence[RolloutGroup] | str | Path] | PassHistory,
    statistics: RolloutStatistics,
    groups: Sequence[RolloutGroup],
    threshold: float | None,
    group_size: int,
) -> PassHistory:
    """What is known of earlier rounds; without any, the pool's rollouts are the only one."""
    from cropi.rollouts import as_groups

    if isinstance(history, PassHistory):
        return history
    rounds = map(as_groups, history or [groups])  # in memory one at a time
    return pass_history(statistics.prompt_ids, rounds, threshold, group_size)


def _settings(
    settings: SelectionConfig, hidden_states: NDArray[np.floating] | None
) -> SelectionConfig:
    if hidden_states is not None or "strategy" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"strategy": StrategyChoice.of(SCORES_ALONE)})


def _estimate(scores: InfluenceEstimate | Influence | None) -> InfluenceEstimate | None:
    if scores is None or isinstance(scores, InfluenceEstimate):
        return scores
    estimate = getattr(scores, "estimate", None)
    if not isinstance(estimate, InfluenceEstimate):
        require_kind(scores, InfluenceEstimate, "scores", SCORES_FIX)
    return estimate


def _require_one_pool(
    estimate: InfluenceEstimate | None,
    earlier: Sequence[InfluenceEstimate],
    rollouts: Sequence[str],
) -> None:
    """Raise InputError if scores, those of earlier stages and rollouts are not of one pool.

    `rollouts` are the prompts with rollouts; none where there are no rollouts at all.
    """
    if estimate is None:
        return
    sampled = set(rollouts)
    missing = [name for name in estimate.prompt_ids if name not in sampled] if rollouts else []
    if missing:
        raise InputError(
            f"the scores name {plural(len(missing), 'prompt')} that the rollouts lack, first "
            f"{shown(missing[0], 60)}; {_remedy_for_missing(estimate, missing)}"
        )
    scored = set(estimate.prompt_ids)
    for stage_index, before in enumerate(earlier):
        if scored.isdisjoint(before.prompt_ids):
            raise InputError(
                f"the scores of earlier stage {stage_index} share no prompt with the last ones; "
                "give scores of the same pool"
            )


def _remedy_for_missing(estimate: InfluenceEstimate, missing: Sequence[str]) -> str:
    """What to do about prompts with scores but no rollouts: a run may have sampled only a part."""
    status_of = dict(zip(estimate.prompt_ids, estimate.status, strict=True))
    if all(status_of[name] == NOT_SAMPLED for name in missing):
        return (
            "their run never sampled them, so that its files do not hold what they ask; its own "
            "selection covers them (cropi export RUN), and scores alone rank those that have one"
        )
    return "give scores and rollouts of the same pool"


def _require_reading(
    needs: Needs,
    strategy: str,
    hidden_states: NDArray[np.floating] | None,
    current: NDArray[np.float64] | None,
) -> None:
    """Raise InputError for what a strategy needs to know of the policy and lacks."""
    if needs.hidden_states and hidden_states is None:
        raise InputError(
            f"strategy {strategy} needs the policy's hidden states at the prompts; a run makes "
            "them, and in Python give hidden_states=prompt_hidden_states(model, rollouts)"
        )
    if needs.current and current is None:
        raise InputError(
            f"strategy {strategy} needs pass rates under the current policy; a run makes them, and "
            "in Python give current=current_pass_rates(model, rollouts)"
        )


def _require(
    needs: Needs,
    strategy: str,
    estimate: InfluenceEstimate | None,
    rollouts: Sequence[RolloutGroup] | RolloutStatistics | str | Path | None,
) -> None:
    """Raise InputError for scores or rollouts that a strategy needs and lacks."""
    if needs.scoring != "never" and estimate is None:
        raise InputError(f"strategy {strategy} needs scores; make them with `cropi score`")
    if rollouts is None and (needs.scoring == "never" or needs.direction == "pool"):
        raise InputError(f"strategy {strategy} needs the pool's rollouts; give rollouts")


def selected_prompts(prompt_ids: Sequence[str], pool: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of `pool` with the ids of a selection, in its order.

    Raises InputError for an empty selection, and an id that `pool` lacks.
    """
    if not prompt_ids:
        raise InputError("the selection is empty; select at least one prompt")
    by_id = {prompt.prompt_id: prompt for prompt in pool}
    missing = [name for name in prompt_ids if name not in by_id]
    if missing:
        raise InputError(
            f"the selection names {plural(len(missing), 'prompt')} not among the "
            f"{plural(len(by_id), 'given prompt')}, first {shown(missing[0], 60)}; give the "
            "prompts that were selected from"
        )
    return [by_id[name] for name in prompt_ids]
