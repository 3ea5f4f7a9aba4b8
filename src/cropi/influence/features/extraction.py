"""From a model and rollouts to a feature store: gradients, sketched as they are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from cropi.errors import InputError
from cropi.execution import Inline, WorkUnit, run_units
from cropi.gradients.consumers import GradientConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.features.feature_files import (
    IDENTITY,
    SKETCH_FILE,
    Dtype,
    StoreIdentity,
    read_identity,
    require_comparable,
    rows_path,
)
from cropi.influence.features.feature_store import FeatureStore
from cropi.influence.features.feature_writer import FeatureWriter
from cropi.influence.left_out_prompts import InformativeGroups, require_informative
from cropi.influence.pool_pass import ratio_notes
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.influence.scorer import fit_sketch
from cropi.progress import ProgressCallback
from cropi.schema import RolloutGroup
from cropi.short_repr import ShortRepr
from cropi.sketches import FittedSketch, Sketch, SketchConsumer
from cropi.store.files import bytes_hash, file_hash
from cropi.store.lock import exclusive_lock


@dataclass(frozen=True, repr=False)
class Extraction(ShortRepr):
    """A finished store, the tokens through the model that this call spent on it, and its doubts.

    `notes` are sentences about the prompts that this call sketched.
    """

    store: FeatureStore
    tokens: int
    notes: list[str] = field(default_factory=list)


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
    dtype: Dtype = "float16",
    like: FeatureStore | None = None,
    preconditioner: Preconditioner | None = None,
    progress: ProgressCallback | None = None,
) -> Extraction:
    """Sketch the gradient of every informative prompt into the store `folder`.

    `rollouts` is the hash of the file that `groups` were read from. `like` is the pool's store, for
    a target's, whose gradients `preconditioner` scales. A call that was killed continues where it
    stopped, and ends with the same bytes. Raises InputError if no prompt is informative, a
    gradient is not finite, another process is writing there, the folder holds other features, these
    could not be compared with `like`, or the preconditioner lacks a parameter.
    """
    if sketch is None:
        raise InputError("the sketch 'exact' stores nothing; choose another, e.g. adaptive")
    if preconditioner is not None:
        preconditioner.require(extractor.shapes)
    with exclusive_lock(folder):
        tokens, notes = _write_store(
            extractor, sketch, groups, folder, rollouts, dtype, like, preconditioner, progress
        )
    return Extraction(FeatureStore(folder), tokens, notes)


def _write_store(
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    folder: Path,
    rollouts: str,
    dtype: Dtype,
    like: FeatureStore | None,
    preconditioner: Preconditioner | None,
    progress: ProgressCallback | None,
) -> tuple[int, list[str]]:
    """Begin the store or continue it; return the tokens it took, and notes."""
    informative = require_informative("the rollouts", groups, extractor.objective)
    tokens, state = fit_or_load_sketch(extractor, sketch, informative.groups, folder, like)
    identity = replace(
        identity_of(extractor, sketch, informative, len(groups), rollouts),
        dtype=dtype,
        sketch_file="" if state is None else bytes_hash(state),
        preconditioner={} if preconditioner is None else preconditioner.identity,
    )
    if like is not None:
        require_comparable(like.identity, identity, f"{folder} would not match {like.folder}")
    ids = [group.prompt_id for group in informative.groups]
    lengths = [group.tokens for group in informative.groups]
    writer = FeatureWriter(folder, identity, ids, lengths, state)
    spent, notes = write_missing_shards(
        writer, extractor, sketch, informative.groups, preconditioner, progress
    )
    return tokens + spent, [*informative.notes, *notes]


def write_missing_shards(
    writer: FeatureWriter,
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    preconditioner: Preconditioner | None,
    progress: ProgressCallback | None,
) -> tuple[int, list[str]]:
    """Write the shards that are missing, one after the other; return the tokens, and notes."""
    done = len(writer.done)

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        if progress:
            progress(done, len(groups))

    advance(0)
    units = [
        WorkUnit(
            f"shard {number}",
            _write_shard,
            (writer, number, extractor, sketch, groups, preconditioner, advance),
            output=rows_path(writer.folder, number),
        )
        for number, _ in writer.pending()
    ]
    with Inline() as executor:
        finished = [unit.result() for unit in run_units(executor, units)]
    return sum(tokens for tokens, _ in finished), [note for _, notes in finished for note in notes]


def _write_shard(
    writer: FeatureWriter,
    number: int,
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    preconditioner: Preconditioner | None,
    advance: Callable[[int], None],
) -> tuple[int, list[str]]:
    """Sketch the gradients of one shard's prompts; return the tokens it took, and notes."""
    indices = writer.identity.shard_indices()[number]
    members = groups[indices.start : indices.stop]
    with writer.shard(number) as sink:
        sketcher = SketchConsumer(sketch, sink, extractor.device)
        consumers: list[GradientConsumer] = [sketcher]
        if preconditioner is not None:
            # Norms of plain gradients, as the weights of a target need them.
            norms = NormConsumer(len(members), extractor.device)
            consumers = [PreconditioningConsumer(sketcher, preconditioner), norms]
        report = extractor.run(members, consumers, advance)
        if preconditioner is not None:
            sink.norms[:] = norms.norms
        sink.statuses = report.statuses
    return report.tokens, ratio_notes(f"shard {number}", members, report)


def fit_or_load_sketch(
    extractor: GradientExtractor,
    sketch: Sketch,
    groups: Sequence[RolloutGroup],
    folder: Path,
    like: FeatureStore | None,
) -> tuple[int, bytes | None]:
    """Fit a sketch that is fitted to data, or load the state of `like` or an interrupted call.

    Returns the tokens it took, and the state as a file's content (None: nothing to fit).
    """
    if not isinstance(sketch, FittedSketch):
        return 0, None
    state_file = like.sketch_file if like is not None else interrupted_state(folder)
    tokens = 0
    if state_file is not None:
        sketch.load_state(state_file.read_bytes())
    elif not sketch.is_fitted:
        tokens = fit_sketch(extractor, sketch, groups)
    return tokens, sketch.state_bytes()


def interrupted_state(folder: Path) -> Path | None:
    """The file of the sketch that an interrupted call fitted, if it is there and complete."""
    path = folder / SKETCH_FILE
    if not path.is_file() or not (folder / IDENTITY).is_file():
        return None
    return path if file_hash(path) == read_identity(folder).sketch_file else None


def identity_of(
    extractor: GradientExtractor,
    sketch: Sketch,
    informative: InformativeGroups,
    pool_size: int,
    rollouts: str,
) -> StoreIdentity:
    """The identity of the store to be written, from everything that determines it.

    How gradients are batched or where directions are held changes none, and is not in it.
    """
    return StoreIdentity(
        sketch=sketch.identity,
        policy=policy_hash(extractor.model),
        rollouts=rollouts,
        dim=sketch.dim,
        prompts=len(informative.groups),
        pool_size=pool_size,
        settings={
            "parameters": None if extractor.patterns is None else list(extractor.patterns),
            "objective": extractor.objective.model_dump(mode="json"),
        },
        skipped=informative.skipped,
    )
