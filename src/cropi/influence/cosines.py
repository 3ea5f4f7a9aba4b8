"""Influence as a cosine, once inner products and norms are known.

Whether gradients were streamed or sketches read from files. NumPy alone, so that scoring stored
features loads no model code.

Shape legend: P prompts of a pool, N informative ones, V targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.estimation.noise import pooled_standard_error
from cropi.influence.targets import TargetReliability
from cropi.schema import EQUAL_REWARDS, SCORED, InfluenceEstimate, RolloutGroup
from cropi.short_repr import ShortRepr


@dataclass(frozen=True, repr=False)
class Influence(ShortRepr):
    """A pool's scores, the reliability of each target, and the tokens that scoring took.

    `notes` are warnings: prompts that were left out, a policy far from
    the rollouts, unreliable targets.
    """

    estimate: InfluenceEstimate
    reliability: dict[str, TargetReliability]
    tokens: int
    notes: list[str] = field(default_factory=list)

    @property
    def number_notes(self) -> list[str]:
        """The notes that are not about the reliability of a target."""
        about_targets = {w for name, each in self.reliability.items() for w in each.warnings(name)}
        return [note for note in self.notes if note not in about_targets]


@dataclass(frozen=True, repr=False)
class ResponseInfluence(ShortRepr):
    """Of each informative prompt [N] the parts of its cosines that its K usable responses bring.

    `parts_NKV` add up to the cosines; `errors_NV` are standard errors by leaving one response out.
    """

    parts_NKV: list[NDArray[np.float64]]
    errors_NV: NDArray[np.float64]
    tokens: int


def cosines(
    dots_PV: NDArray[np.floating],
    norms_P: NDArray[np.floating],
    target_norms: Sequence[float],
    names: Sequence[str],
) -> NDArray[np.float64]:
    """Divide inner products by norms; a gradient without length has cosine 0.

    Raises InputError if a target's direction is not finite or has no length, or if an inner
    product is not finite.
    """
    for name, norm in zip(names, target_norms, strict=True):
        require_direction(name, norm)
    if not np.isfinite(dots_PV).all():
        bad = int((~np.isfinite(dots_PV).all(1)).sum())
        raise InputError(
            f"{bad} of {len(norms_P)} gradients have an inner product with a target that is not "
            "finite; check the checkpoint's weights and the rollouts' log-probs"
        )
    safe_P = np.where(norms_P > 0, norms_P, 1.0)
    cosines_PV = dots_PV / (safe_P[:, None] * np.array(target_norms)[None])
    return np.asarray(np.clip(cosines_PV, -1.0, 1.0))


def require_direction(name: str, norm: float) -> None:
    """Raise InputError unless the direction of a target, by its norm, can be compared with."""
    if not math.isfinite(norm):
        raise InputError(
            f"the direction of validation set {name} is not finite (NaN or infinity); check its "
            "rollouts' log-probs and rewards, and the checkpoint's weights"
        )
    if norm == 0:
        raise InputError(
            f"the gradients of validation set {name} sum to zero, so the target has no "
            "direction; add prompts to it or sample more responses"
        )


def pool_estimate(
    pool: Sequence[RolloutGroup],
    cosines_NV: NDArray[np.floating],
    norms_N: NDArray[np.floating],
    rewards_N2: NDArray[np.floating],
    status_N: Sequence[str],
    names: Sequence[str],
    identity: Mapping[str, str],
    responses: ResponseInfluence | None = None,
) -> InfluenceEstimate:
    """The estimate of a whole pool [P] from what was measured of its informative prompts.

    Rewards that are all equal are the mean reward of that prompt under any policy.
    With `responses` each prompt has a standard error of its own, and its responses' parts.
    """
    status = [group.score_status for group in pool]
    indices = np.flatnonzero(np.array([each == SCORED for each in status], dtype=bool))
    for index, each in zip(indices.tolist(), status_N, strict=True):
        status[index] = each
    scored_N = np.array([each == SCORED for each in status_N], dtype=bool)

    def spread(values_N: NDArray[np.floating]) -> NDArray[np.float32]:
        values_P = np.full(len(pool), np.nan, np.float32)
        values_P[indices[scored_N]] = values_N[scored_N]
        return values_P

    current_P = spread(rewards_N2[:, 0])
    for index, group in enumerate(pool):
        if status[index] == EQUAL_REWARDS:
            current_P[index] = group.rewards.mean()
    mean = {name: spread(cosines_NV[:, v].astype(np.float32)) for v, name in enumerate(names)}
    estimate = InfluenceEstimate(
        prompt_ids=[group.prompt_id for group in pool],
        mean=mean,
        standard_error=pooled_standard_error(mean),
        norms=spread(norms_N.astype(np.float32)),
        tokens=np.array([group.tokens for group in pool], np.int64),
        group_size=np.array([len(group.usable) for group in pool], np.int32),
        status=status,
        identity=dict(identity),
        current_reward=current_P,
        effective_share=spread(rewards_N2[:, 1]),
    )
    rows = zip(indices[scored_N].tolist(), np.flatnonzero(scored_N).tolist(), strict=True)
    return estimate if responses is None else _with_responses(estimate, pool, responses, [*rows])


def _with_responses(
    estimate: InfluenceEstimate,
    pool: Sequence[RolloutGroup],
    responses: ResponseInfluence,
    rows: Sequence[tuple[int, int]],
) -> InfluenceEstimate:
    """The estimate with errors and parts of scored prompts; `rows` index the pool and [N]."""
    errors = {name: values.copy() for name, values in estimate.standard_error.items()}
    nothing = np.zeros(0, np.float32)
    parts = {name: [nothing] * len(pool) for name in estimate.mean}
    for v, name in enumerate(estimate.mean):
        for index, n in rows:
            errors[name][index] = responses.errors_NV[n, v]
            parts[name][index] = _of_all_responses(pool[index], responses.parts_NKV[n][:, v])
    return replace(estimate, standard_error=errors, responses=parts)


def _of_all_responses(group: RolloutGroup, values_K: NDArray[np.float64]) -> NDArray[np.float32]:
    """One value per response of a group, NaN for those that are not usable."""
    values = np.full(len(group.responses), np.nan, np.float32)
    values[[response.usable for response in group.responses]] = values_K
    return values
