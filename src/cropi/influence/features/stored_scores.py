"""Influence from stored features: no model, no gradients, a scan of two or more stores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cropi.errors import InputError
from cropi.estimation.evidence import pooled_standard_error
from cropi.influence.cosines import (
    Influence,
    Target,
    TargetReliability,
    cosine,
    cosines,
    target_reliability,
    target_weights,
)
from cropi.influence.features.feature_store import FeatureStore
from cropi.influence.features.identity import require_comparable
from cropi.schema import SCORED, InfluenceEstimate, fingerprint


def score_features(
    pool: FeatureStore, targets: Mapping[str, FeatureStore], target: Target = "mean"
) -> Influence:
    """One cosine a target for each prompt of `pool`, as `InfluenceScorer` gives with that sketch.

    Raises InputError if a target's features are not comparable with the pool's, or its gradients
    sum to zero.
    """
    for name, store in targets.items():
        what = f"the features of target {name} ({store.folder}) do not match {pool.folder}"
        require_comparable(pool.identity, store.identity, what)
    adam = preconditioner_of(pool, targets)
    found = {name: direction(store, target) for name, store in targets.items()}
    directions_VD = np.stack([mean for mean, _ in found.values()])
    cosines_PV = cosines(
        pool.dots(directions_VD),
        np.sign(pool.lengths),  # rows are of unit length, or zero
        [float(length) for length in np.linalg.norm(directions_VD, axis=1)],
        list(targets),
    )
    mean = {n: cosines_PV[:, v].astype(np.float32) for v, n in enumerate(targets)}
    estimate = InfluenceEstimate(
        prompt_ids=pool.prompt_ids,
        mean=mean,
        standard_error=pooled_standard_error(mean),
        norms=pool.norms.astype(np.float32),
        tokens=pool.tokens,
        group_size=np.zeros(len(pool), np.int32),  # not stored
        status=[SCORED] * len(pool),
        unlisted=dict(pool.identity.skipped),
        identity=score_identity(pool, adam, target),
    )
    trust = {name: held for name, (_, held) in found.items()}
    return Influence(estimate, trust, 0, [w for n, t in trust.items() for w in t.warnings(n)])


def direction(store: FeatureStore, target: Target) -> tuple[np.ndarray, TargetReliability]:
    """A target's direction, float64 [D], and how far it can be trusted."""
    weights_N = target_weights(store.norms, target)
    even_N = np.arange(len(store)) % 2 == 0
    halves_2D = store.weighted_sums(np.stack([even_N, ~even_N]) * (weights_N * store.lengths)[None])
    gram = halves_2D @ halves_2D.T
    agreement = cosine(gram[0, 1], gram[0, 0], gram[1, 1])
    return halves_2D.sum(0), target_reliability(weights_N * store.norms, agreement)


def preconditioner_of(pool: FeatureStore, targets: Mapping[str, FeatureStore]) -> Mapping[str, str]:
    """What scaled the targets' gradients, the same for all; the pool's must be plain.

    Raises InputError otherwise.
    """
    if pool.identity.preconditioner:
        raise InputError(
            f"{pool.folder} holds preconditioned features, and only a target's may be; make the "
            "pool's with precondition=none"
        )
    first, *others = targets.values()
    for store in others:
        if store.identity.preconditioner != first.identity.preconditioner:
            raise InputError(
                f"{first.folder} and {store.folder} are preconditioned differently; make all "
                "targets' features with the same precondition and checkpoint"
            )
    return first.identity.preconditioner


def score_identity(
    pool: FeatureStore, preconditioner: Mapping[str, str], target: Target
) -> dict[str, str]:
    """What defines the scores beside policy and rollouts."""
    sketch, dtype = pool.identity.sketch, pool.identity.dtype
    objective = fingerprint(pool.identity.settings["objective"])
    return {
        "method": "sketch",
        **sketch,
        "objective": objective,
        **preconditioner,
        "target": target,
        "features": dtype,
    }
