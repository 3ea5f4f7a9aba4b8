"""The steps around the feature store as plain functions; `cropi.api` offers them with the others.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cropi.config import InfluenceConfig
from cropi.errors import InputError
from cropi.rollouts import read_rollouts
from cropi.schema import longest_allowed
from cropi.store.files import file_hash

if TYPE_CHECKING:
    from torch import nn

    from cropi.influence.cosines import Influence
    from cropi.influence.features import FeatureStore
    from cropi.influence.features.extraction import Extraction

AnyPath = str | Path


def extract_features(
    policy: AnyPath | nn.Module,
    rollouts: AnyPath,
    out: AnyPath,
    *,
    settings: InfluenceConfig | None = None,
    seed: int = 0,
    stored: Literal["float16", "float32"] = "float16",
    dtype: str = "auto",
    device: str = "auto",
    like: FeatureStore | AnyPath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Sketch the gradients of a rollout file's informative prompts into the store `out`.

    `settings.method` names the sketch (default: adaptive); `dtype` and `device` are those of
    `load_policy`. A call that was killed goes on where it stopped. `like` is the pool's store, for
    a target's: a sketch that learns takes from it what it learnt. Raises InputError if nothing is
    informative, `out` holds other features, or they could not be compared with `like`.
    """
    from cropi.influence.features.feature_writer import require_store_place
    from cropi.influence.setup import make_scorer

    chosen = settings or InfluenceConfig(method="adaptive")
    require_store_place(Path(out))
    groups = read_rollouts(Path(rollouts))
    longest = longest_allowed(groups)
    folder = Path(policy) if isinstance(policy, str | Path) else None
    model = _model(policy, dtype, device)
    scorer = make_scorer(model, chosen, seed, constant_length=longest, checkpoint=folder)
    return scorer.features(
        groups,
        Path(out),
        rollouts=file_hash(Path(rollouts)),
        dtype=stored,
        like=None if like is None else _store(like),
        progress=progress,
    )


def score_features(
    pool: FeatureStore | AnyPath,
    targets: Mapping[str, FeatureStore | AnyPath],
    *,
    target: Literal["mean", "unit_mean"] = "mean",
) -> Influence:
    """Influence from stored features, as `score` gives with their sketch; loads no model.

    Raises InputError if a store is damaged or incomplete, or a target's features were made with
    another policy, sketch or objective than the pool's.
    """
    from cropi.influence.features import score_features as score_stores

    if not targets:
        raise InputError("score needs at least one target: give NAME and its features")
    return score_stores(_store(pool), {n: _store(t) for n, t in targets.items()}, target)


def _store(found: FeatureStore | AnyPath) -> FeatureStore:
    from cropi.influence.features import FeatureStore

    return FeatureStore(found) if isinstance(found, str | Path) else found


def _model(policy: AnyPath | nn.Module, dtype: str, device: str) -> Any:
    from cropi.policy.loading import load_model

    return (
        load_model(policy, dtype=dtype, device=device) if isinstance(policy, str | Path) else policy
    )
