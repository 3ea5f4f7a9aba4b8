"""Influence from settings: `score` in one call, `make_scorer` for its parts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cropi.arguments import require_by_name
from cropi.errors import InputError
from cropi.execution import Executor
from cropi.gradients.extractor import GradientExtractor, UnmatchedPatternError
from cropi.gradients.ranks import Ranks
from cropi.influence.cosines import Influence
from cropi.influence.features.extraction import Extraction, write_features
from cropi.influence.features.feature_files import Dtype
from cropi.influence.features.feature_store import FeatureStore, as_store
from cropi.influence.features.feature_writer import require_store_place
from cropi.influence.growing_pool import GrowingPool
from cropi.influence.pool_scorer import PoolScorer
from cropi.influence.preconditioner import Preconditioner
from cropi.influence.scorer import Scorer
from cropi.influence.settings import FEATURE_SKETCH, InfluenceConfig
from cropi.influence.sharded.sharded_scorer import ShardedScorer
from cropi.policy.loading import as_model, weights_revision
from cropi.policy.optimizer_state import OPTIMIZER_FILE, second_moments
from cropi.policy.reference import PolicyRef
from cropi.progress import PhaseProgress, ProgressCallback
from cropi.rollouts import as_groups, read_rollouts
from cropi.schema import PolicyIdentity, RolloutGroup, longest_allowed
from cropi.settings import given_or_default
from cropi.sketches import make_sketch
from cropi.sketches.settings import SketchChoice
from cropi.store.files import file_hash
from cropi.store.remote import local_place

if TYPE_CHECKING:
    from torch import nn

    from cropi.policy.loading import Policy


def make_scorer(
    model: Any,
    config: InfluenceConfig,
    seed: int,
    progress: PhaseProgress | None = None,
    constant_length: int = 512,
    checkpoint: Path | None = None,
    revision: str = "",
) -> Scorer:
    """Return a scorer of `model` as the config says.

    `seed` defines the sketch; `constant_length` is Dr.GRPO's divisor where the config has none;
    `checkpoint` is the folder whose Adam state preconditions the directions, where the config asks
    for that. `revision` names the weights, as `policy_revision` of rollouts does. Raises InputError
    if the checkpoint has no such state.
    """
    extractor = _extractor(model, config, constant_length, revision)
    exact = config.sketch.is_exact
    sketch = None if exact else make_sketch(config.sketch, extractor.whole_shapes, seed)
    adam = None
    if config.precondition == "adam":
        adam = Preconditioner(second_moments(_required(checkpoint), extractor.model))
    return Scorer(
        extractor, sketch, config.target, progress, config.target_memory, adam, config.metric
    )


def score(
    policy: Policy | PolicyRef | str | Path | nn.Module,
    pool: Sequence[RolloutGroup] | str | Path,
    targets: Mapping[str, Sequence[RolloutGroup] | str | Path],
    settings: InfluenceConfig | None = None,
    *,
    seed: int = 0,
    constant_length: int | None = None,
    checkpoint: str | Path | None = None,
    revision: str = "",
    per_response: bool = False,
    executor: Executor | None = None,
    folder: str | Path | None = None,
    progress: PhaseProgress | None = None,
) -> Influence:
    """Influence of each informative pool prompt on each target, under `policy`.

    Args:
        policy: a policy, a reference to one, a model, or a path, hub id or built-in name.
        pool: rollouts of the training prompts, or the file they are in.
        targets: rollouts of each validation set by its name, or their files.
        settings: the objective, the sketch and the target's direction.
        seed: of the sketch.
        constant_length: the divisor of `normalisation="constant"`; default: the longest response
            that the pool's rollouts allowed, in tokens.
        checkpoint: the folder whose Adam state `settings.precondition` reads; default: `policy`.
        revision: of a model's weights, as `policy_revision` of rollouts has it; default: that of
            `policy`, unless it is a model. Rollouts that it sampled must have its log-probs.
        per_response: measure what each response brings too, and each prompt's standard error.
        executor: has shards of the work done, by workers that load the policy themselves; default:
            everything is done here.
        folder: keeps what an executor's workers have measured, until you remove it: a call that was
            killed continues with it. All workers must see it.
        progress: called with (phase, prompts done, prompts in all).

    Raises:
        InputError: pool or target has no informative prompt, or a gradient is not finite.
    """
    require_by_name(targets, "targets", '{"val": "val.parquet"}')
    groups = as_groups(pool)
    growing = growing_pool(
        policy,
        targets,
        settings,
        seed=seed,
        constant_length=constant_length or longest_allowed(groups),
        checkpoint=checkpoint,
        revision=revision,
        executor=executor,
        folder=folder,
        progress=progress,
    )
    growing.add(groups, per_response)
    return growing.influence(groups)


def growing_pool(
    policy: Policy | PolicyRef | str | Path | nn.Module,
    targets: Mapping[str, Sequence[RolloutGroup] | str | Path],
    settings: InfluenceConfig | None = None,
    *,
    seed: int = 0,
    constant_length: int,
    checkpoint: str | Path | None = None,
    revision: str = "",
    executor: Executor | None = None,
    folder: str | Path | None = None,
    progress: PhaseProgress | None = None,
) -> GrowingPool:
    """A pool whose rollouts come in portions; the arguments are those of `score`."""
    settings = given_or_default(settings, InfluenceConfig, "settings")
    state = _checkpoint(policy, checkpoint)
    if executor is None:
        model = policy.load().model if isinstance(policy, PolicyRef) else as_model(policy)
        scorer: PoolScorer = make_scorer(
            model, settings, seed, progress, constant_length, state, revision or _revision(policy)
        )
    else:
        reference, moments = _sendable(policy), _state_hash(settings, state)
        scorer = ShardedScorer(
            partial(_scorer_of, reference, settings, seed, constant_length, state),
            settings,
            constant_length,
            (reference.identity, seed, moments),
            executor,
            _required_folder(folder),
            progress,
        )
    return scorer.growing({name: as_groups(rollouts) for name, rollouts in targets.items()})


def _scorer_of(
    policy: PolicyRef, settings: InfluenceConfig, seed: int, length: int, state: Path | None
) -> Scorer:
    """The scorer of a policy, which is loaded where this is called: in a worker."""
    model, revision = policy.load().model, policy.identity.revision
    return make_scorer(model, settings, seed, None, length, state, revision)


def _revision(policy: Any) -> str:
    """What names a policy's weights in the rollouts that it sampled; empty for a model."""
    if isinstance(policy, str | Path):
        return weights_revision(policy)
    identity = getattr(policy, "identity", None)
    return identity.revision if isinstance(identity, PolicyIdentity) else ""


def _sendable(policy: Any) -> PolicyRef:
    """A reference that workers can load. Raises InputError for weights in memory."""
    if isinstance(policy, str | Path):
        return PolicyRef(policy)
    if isinstance(policy, PolicyRef) and policy.path is not None:
        return policy
    raise InputError(
        "workers load the policy themselves, and this one is in memory; give the path of its "
        "checkpoint, or leave out the executor"
    )


def _state_hash(settings: InfluenceConfig, state: Path | None) -> str:
    """The content of the optimizer's state, where it decides scores."""
    file = None if state is None else state / OPTIMIZER_FILE
    if settings.precondition == "none" or file is None or not file.is_file():
        return ""
    return file_hash(file)


def _required_folder(folder: str | Path | None) -> Path:
    if folder is None:
        raise InputError("scoring in shards keeps them in files; give a folder for them")
    return Path(folder)


def extract_features(
    policy: Policy | str | Path | nn.Module,
    rollouts: str | Path,
    out: str | Path,
    settings: InfluenceConfig | None = None,
    *,
    seed: int = 0,
    stored: Dtype = "float16",
    like: FeatureStore | str | Path | None = None,
    checkpoint: str | Path | None = None,
    revision: str = "",
    progress: ProgressCallback | None = None,
) -> Extraction:
    """Sketch the gradients of a rollout file's informative prompts into the store `out`.

    A call that was killed continues where it stopped.

    Args:
        policy: a policy, a model, or a path, hub id or built-in name.
        rollouts: the file of rollouts.
        out: the folder to write.
        settings: the objective and the sketch; default: the adaptive sketch.
        seed: of the sketch.
        stored: the dtype of the stored sketches.
        like: for a target's rollouts, the pool's store: a sketch that is fitted to data takes from
            it what it was fitted to.
        checkpoint: the folder whose Adam state `settings.precondition` reads; default: `policy`.
        revision: as in `score`.
        progress: called with (prompts done, prompts in all).

    Raises:
        InputError: nothing is informative, `out` holds other features, or they could not be
            compared with `like`.
    """
    require_store_place(Path(out))
    adaptive = InfluenceConfig(sketch=SketchChoice.of(FEATURE_SKETCH))
    settings = given_or_default(settings or adaptive, InfluenceConfig, "settings")
    if settings.metric != "cosine":
        raise InputError(
            f"influence.metric {settings.metric!r} has no effect on stored features, which are "
            "compared by their cosines; leave it out"
        )
    file = local_place(rollouts)
    groups = read_rollouts(file)
    scorer = make_scorer(
        as_model(policy),
        settings,
        seed,
        constant_length=longest_allowed(groups),
        checkpoint=_checkpoint(policy, checkpoint),
        revision=revision or _revision(policy),
    )
    return write_features(
        scorer.extractor,
        scorer.sketch,
        groups,
        Path(out),
        rollouts=file_hash(file),
        dtype=stored,
        like=None if like is None else as_store(like),
        preconditioner=scorer.preconditioner,
        progress=progress,
    )


def _checkpoint(policy: Any, checkpoint: str | Path | None) -> Path | None:
    """The folder with the optimizer's state: the given one, or the policy's."""
    if checkpoint is None and isinstance(policy, str | Path):
        checkpoint = policy
    return None if checkpoint is None else local_place(checkpoint)


def _extractor(
    model: Any, config: InfluenceConfig, constant_length: int, revision: str
) -> GradientExtractor:
    try:
        return GradientExtractor(
            _without_underflow(model),
            config.objective.with_length(constant_length),
            config.batch_tokens,
            config.share_prefix,
            config.gradient_checkpointing,
            config.parameters,
            Ranks.of(model),
            config.target_memory,
            revision,
        )
    except UnmatchedPatternError as error:
        raise InputError(f"influence.parameters: {error}") from error


def _required(checkpoint: Path | None) -> Path:
    if checkpoint is None:
        raise InputError(
            "influence.precondition is adam, and the policy is not a training checkpoint; "
            "give one that holds optimizer.pt, or set influence.precondition=none"
        )
    return checkpoint


def _without_underflow(model: Any) -> Any:
    """A float16 model is widened: gradients of long responses fall below float16's range."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        warnings.warn("float16 gradients underflow; computing in float32 instead", stacklevel=4)
        return model.float()
    return model
