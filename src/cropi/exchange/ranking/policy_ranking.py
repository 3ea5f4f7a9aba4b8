"""A log ranked by influence: how much a step on each prompt would help a policy on your targets.

The steps are those of a run's stage, from the same functions: responses as rollouts, influence,
selection. Where a log has no log-probs, either a checkpoint recomputes them (`behaviour`), or the
objective has no ratios, as if the policy itself had sampled the responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.stage_rollouts import StageRollouts
from cropi.curriculum.stage_selection import influence_settings, target_rollouts
from cropi.exchange.ranking.logged_groups import LoggedGroups
from cropi.exchange.ranking.ranking import LoggedPool, MeasuredPool
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import score
from cropi.policy.hidden_states import prompt_hidden_states
from cropi.policy.reference import PolicyRef
from cropi.progress import PhaseProgress
from cropi.prompts import encode
from cropi.rollouts.recomputed_logprobs import with_logprobs
from cropi.schema import RolloutGroup
from cropi.selection import find_strategy, needs_of
from cropi.selection.settings import SelectionConfig

WITHOUT_RATIOS = (
    "the log has no log-probs, so that influence is without ratios (objective.ratio=none): exact "
    "where the policy sampled the responses itself, an approximation where it has moved on; "
    "--behaviour CHECKPOINT recomputes them from the policy that sampled"
)
RECOMPUTED = (
    "log-probs are recomputed from the checkpoint of --behaviour, for all responses: right where "
    "that checkpoint sampled them"
)


def measure_pool(
    logged: LoggedPool,
    pool: LoggedGroups,
    targets: Mapping[str, LoggedGroups],
    policy: PolicyRef,
    selection: SelectionConfig,
    influence: InfluenceConfig,
    seed: int = 0,
    behaviour: PolicyRef | None = None,
    progress: PhaseProgress | None = None,
) -> MeasuredPool:
    """Score a pool's groups against targets under a policy, as the strategy needs it.

    Raises InputError as `cropi.score` does.
    """
    notes = [*pool.notes, *(n for each in targets.values() for n in each.notes)]
    needs = needs_of(find_strategy(selection.strategy))
    with_logprobs = all(each.with_logprobs for each in (pool, *targets.values()))
    if not with_logprobs and behaviour is not None:
        pool, targets = _recomputed(pool, targets, behaviour)
        notes.append(RECOMPUTED)
    elif not with_logprobs and influence.objective.uses_ratios:
        plain = influence.objective.model_copy(
            update={"ratio": "none", "clip": None, "self_normalised": False}
        )
        influence = influence.model_copy(update={"objective": plain})
        notes.append(WITHOUT_RATIOS)
    stage = StageRollouts(pool.groups, {n: list(t.groups) for n, t in targets.items()}, [])
    loaded = policy.load()
    estimate = None
    if needs.scoring != "never":
        measured = score(
            loaded,
            pool.groups,
            target_rollouts(needs, stage),
            influence_settings(needs, influence),
            seed=seed,
            checkpoint=policy.path,
            progress=progress,
        )
        estimate, notes = measured.estimate, [*notes, *measured.notes]
    hidden_states = _hidden_states(logged, pool, policy) if needs.hidden_states else None
    return MeasuredPool(estimate, hidden_states, notes)


def _recomputed(
    pool: LoggedGroups, targets: Mapping[str, LoggedGroups], behaviour: PolicyRef
) -> tuple[LoggedGroups, dict[str, LoggedGroups]]:
    """All groups with log-probs under the policy that sampled them."""
    model = behaviour.load().model

    def under(each: LoggedGroups) -> LoggedGroups:
        if each.with_logprobs:
            return each
        return replace(each, groups=with_logprobs(model, each.groups), with_logprobs=True)

    return under(pool), {name: under(each) for name, each in targets.items()}


def _hidden_states(
    logged: LoggedPool, pool: LoggedGroups, policy: PolicyRef
) -> NDArray[np.float32]:
    """Hidden states [L, P, F] of the policy at every prompt of the pool, sampled or not."""
    group_of = {group.prompt_id: group for group in pool.groups}
    groups = [
        group_of.get(prompt.prompt_id)
        or RolloutGroup(
            prompt.prompt_id, np.array(encode(policy.tokenizer, prompt), dtype=np.int32), []
        )
        for prompt in logged.prompts
    ]
    return prompt_hidden_states(policy.load().model, groups)
