"""From a model and rollouts to a feature store: gradients, sketched as they stream by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cropi.errors import InputError
from cropi.gradients.consumers import GradientConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.features.feature_store import FeatureStore
from cropi.influence.features.identity import (
    IDENTITY,
    Dtype,
    StoreIdentity,
    read_identity,
    require_comparable,
)
from cropi.influence.features.writer import SKETCH_FILE, FeatureWriter, content_hash
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.influence.scorer import Pass, learn, require_informative
from cropi.influence.settings import InfluenceConfig
from cropi.schema import RolloutGroup
from cropi.sketches import FittedSketch, Sketch, SketchConsumer
from cropi.store.files import file_hash

NOT_GRADIENTS = {
    "sketch",
    "target",
    "target_memory",
    "precondition",
    "batch_tokens",
    "share_prefix",
    "gradient_checkpointing",
    "objective",
}
"""Settings that say how gradients are sketched (the sketch's identity knows), computed or
compared, but not what they are, and two that are taken resolved: the extractor's objective and the
preconditioner's identity."""


@dataclass(frozen=True)
class Extraction:
    """A finished store, and the tokens through the model that this call spent on it."""

    store: FeatureStore
    tokens: int


def policy_hash(model: nn.Module) -> str:
    """Hash of a model's weights: names, shapes, dtypes and bytes, wherever they came from."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_features(
    extractor: GradientExtractor,
    sketch: Sketch | None,
    groups: Sequence[RolloutGroup],
    folder: Path,
    *,
    rollouts: str,
    settings: InfluenceConfig,
    dtype: Dtype = "float16",
    like: FeatureStore | None = None,
    preconditioner: Preconditioner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Sketch the gradient of every informative prompt into the store `folder`.

    `rollouts` is the hash of the file that `groups` were read from. `like` is the pool's store, for
    a target's, whose gradients `preconditioner` scales. A call that was killed goes on where it
    stopped, and ends with the same bytes. Raises InputError if no prompt is informative, a
    gradient is not finite, the folder holds other features, these could not be compared with
    `like`, or the preconditioner lacks a parameter.
    """
    if sketch is None:
        raise InputError("the sketch 'exact' stores nothing; choose another, e.g. adaptive")
    if preconditioner is not None:
        preconditioner.require(extractor.shapes)
    kept = require_informative("the rollouts", groups)
    tokens, learnt = make_ready(extractor, sketch, kept.groups, folder, like)
    identity = replace(
        identify(extractor, sketch, kept, len(groups), rollouts, settings),
        dtype=dtype,
        sketch_file="" if learnt is None else content_hash(learnt),
        preconditioner={} if preconditioner is None else preconditioner.identity,
    )
    if like is not None:
        require_comparable(like.identity, identity, f"{folder} would not match {like.folder}")
    ids = [group.prompt_id for group in kept.groups]
    writer = FeatureWriter(folder, identity, ids, [g.tokens for g in kept.groups], learnt)
    tokens += fill(writer, extractor, sketch, kept.groups, preconditioner, progress)
    return Extraction(FeatureStore(folder), tokens)


def fill(
    writer: FeatureWriter,
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    preconditioner: Preconditioner | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write the shards that are missing, one after the other; return the tokens it took."""
    done, tokens = len(writer.done), 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        if progress:
            progress(done, len(groups))

    advance(0)
    for number, places in writer.pending():
        with writer.shard(number) as sink:
            members = groups[places.start : places.stop]
            consumers: list[GradientConsumer] = [SketchConsumer(sketch, sink, extractor.device)]
            if preconditioner is not None:
                norms = NormConsumer(len(members), extractor.device)  # plain, as the weights are
                consumers = [PreconditioningConsumer(consumers[0], preconditioner), norms]
            tokens += extractor.run(members, consumers, advance).tokens
            if preconditioner is not None:
                sink.norms[:] = norms.norms
    return tokens


def make_ready(
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    folder: Path,
    like: FeatureStore | None,
) -> tuple[int, bytes | None]:
    """Let a sketch that learns do so, or take what `like` or an interrupted call has learnt.

    Returns the tokens it took, and what it learnt, as a file's content.
    """
    if not isinstance(sketch, FittedSketch):
        return 0, None
    known = like.sketch_file if like is not None else learnt_before(folder)
    tokens = 0
    if known is not None:
        sketch.load(known.read_bytes())
    elif not sketch.learnt:
        tokens = learn(extractor, sketch, groups)
    return tokens, sketch.saved()


def learnt_before(folder: Path) -> Path | None:
    """What the sketch of an interrupted call learnt, if it is there and whole."""
    path = folder / SKETCH_FILE
    if not path.is_file() or not (folder / IDENTITY).is_file():
        return None
    return path if file_hash(path) == read_identity(folder).sketch_file else None


def identify(
    extractor: GradientExtractor,
    sketch: Sketch,
    kept: Pass,
    pool_size: int,
    rollouts: str,
    settings: InfluenceConfig,
) -> StoreIdentity:
    """What the store will hold, from everything that determines it."""
    defining: dict[str, Any] = settings.model_dump(mode="json", exclude=NOT_GRADIENTS)
    return StoreIdentity(
        sketch=sketch.identity,
        policy=policy_hash(extractor.model),
        rollouts=rollouts,
        dim=sketch.dim,
        prompts=len(kept.groups),
        pool_size=pool_size,
        settings={**defining, "objective": extractor.objective.model_dump(mode="json")},
        skipped=kept.skipped,
    )
