"""cropi score: influence of a pool's prompts, from rollouts or from stored sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from cropi.cli.options import (
    MODEL_HELP,
    PLUGIN_HELP,
    Device,
    Dtype,
    OutFile,
    SectionSettings,
    Seed,
    Targets,
    load_model,
    named_files,
    policy_at,
    read_sets,
    scale_and_rest,
    section,
    setting,
)
from cropi.cli.printing import make_reporter, print_outcome, print_table
from cropi.cli.torchrun import launched
from cropi.errors import InputError
from cropi.execution.settings import ScaleConfig
from cropi.influence.settings import InfluenceConfig
from cropi.policy.settings import SplitKind
from cropi.text import plural

if TYPE_CHECKING:
    from cropi.execution import Executor
    from cropi.influence.cosines import Influence
    from cropi.schema import RolloutGroup

TAKEN_WITH_FEATURES = {"features", "target", "out", "settings"}
"""Options of `cropi score` that have an effect where features are given."""
SketchName = Annotated[
    str | None,
    setting(InfluenceConfig, "sketch", text=PLUGIN_HELP),
]


def score(
    ctx: typer.Context,
    target: Targets,
    out: OutFile,
    model: Annotated[str | None, typer.Option("--model", "--policy", help=MODEL_HELP)] = None,
    rollouts: Annotated[Path | None, typer.Option(help="Rollouts of the pool (Parquet)")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Stored features of the pool, instead of both")
    ] = None,
    sketch: SketchName = None,
    per_response: Annotated[
        bool,
        typer.Option(
            "--per-response",
            help="Also what each response adds to its prompt's cosine (a list per target), and "
            "each prompt's own standard error; scoring takes about twice as long",
        ),
    ] = False,
    split: Annotated[
        SplitKind | None,
        typer.Option(
            help="What several processes divide: the weights and the prompts (fsdp, the default), "
            "or the work of each layer (tensor)"
        ),
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Influence of each pool prompt on each validation set, under a policy.

    Settings are those of the config's `influence` section; `scale.ray.workers=8` scores with
    Ray's workers, and a call that was stopped continues when it is given again.

    Examples:

        cropi score --model DIR --rollouts pool.parquet --target gsm8k=val.parquet --out s.parquet

        cropi score ... --sketch sparse sketch.ratio=0.15 sketch.dim=8192 objective.ratio=sequence

        cropi score --features pool.features --target gsm8k=val.features --out s.parquet

    A model that does not fit one GPU is sharded over those of several processes:

        torchrun --nproc-per-node 8 -m cropi score --model DIR ...
        torchrun --nproc-per-node 2 -m cropi score --split tensor --model DIR ...
    """
    from cropi.store.files import remove, require_writable
    from cropi.store.lock import exclusive_output
    from cropi.store.tables import write_scores

    files = named_files(target, "target")
    launch = launched()
    with exclusive_output(out) if launch.is_first else nullcontext(), launch.together():
        if features is not None:
            influence = _from_features(ctx, features, files, out, settings)
        elif model is None or rollouts is None:
            raise InputError(
                "cropi score needs --model and --rollouts, or --features; give the first two, or "
                "what `cropi features` wrote"
            )
        else:
            from cropi.policy.loading import weights_revision

            scale, rest = scale_and_rest(settings)
            config = section(InfluenceConfig, rest, sketch=sketch)
            if launch.is_first:
                require_writable(out)
            groups, targets = read_sets(rollouts, files)
            influence = _measured(
                *_policy_and_executor(model, dtype, device, split, scale),
                groups,
                targets,
                config,
                shards=_shards(out),
                checkpoint=model,
                revision=weights_revision(model),
                seed=seed,
                per_response=per_response,
            )
        if launch.is_first:
            write_scores(out, influence.estimate)
            remove(_shards(out))
            print_scores(influence, out)


def print_scores(influence: Influence, out: Path) -> None:
    """What was scored against what, what was skipped and why, and warnings."""
    scored = influence.estimate.scored()
    columns = ["target", "informative", "effective", "split-half", "max cosine", "mean cosine"]
    if scored.responses:
        columns.append("median error")
    rows = [
        [
            name,
            f"{reliability.informative:,}",
            f"{reliability.effective:.1f}",
            f"{reliability.split_half:z.2f}",
            f"{float(scored.mean[name].max()):z.3f}",
            f"{float(scored.mean[name].mean()):z.3f}",
            f"{float(np.median(scored.standard_error[name])):.3f}",
        ]
        for name, reliability in influence.reliability.items()
    ]
    print_table(columns, [row[: len(columns)] for row in rows])
    total = plural(scored.pool_size, "prompt")
    done = f"{len(scored.prompt_ids):,} of {total} scored -> {out}"
    print_outcome(done, scored.skipped, influence.notes)


def _policy_and_executor(
    model: str, dtype: str | None, device: str | None, split: SplitKind | None, scale: ScaleConfig
) -> tuple[Any, Executor | None]:
    """The model of this process, or a reference to it and the workers that load it.

    Raises InputError for workers beside processes of torchrun, or a split without those.
    """
    from cropi.execution import executor_for

    executor, processes = executor_for(scale), launched().size
    if executor is not None and processes > 1:
        raise InputError(
            f"the model is sharded over {processes} processes, and scale would have workers load "
            "it whole; remove scale, or call cropi without torchrun"
        )
    if split is not None and processes == 1:
        raise InputError(
            f"--split {split} has no effect on one process; start several with torchrun, or "
            "leave it out"
        )
    if executor is not None:
        return policy_at(model, dtype, device), executor
    return load_model(model, dtype, device, processes, split or "fsdp"), None


def _measured(
    policy: Any,
    executor: Executor | None,
    pool: Sequence[RolloutGroup],
    targets: Mapping[str, Sequence[RolloutGroup]],
    config: InfluenceConfig,
    *,
    shards: Path,
    **options: Any,
) -> Influence:
    """The influence of a pool, with a bar; `options` are those of `cropi.score`."""
    import cropi

    with make_reporter().phase("influence", len(pool)) as bar:
        influence = cropi.score(
            policy,
            pool,
            targets,
            config,
            executor=executor,
            folder=shards,
            progress=lambda phase, done, total: bar.update(done, total, note=phase),
            **options,
        )
        bar.note = f"{influence.tokens:,} tokens"
    return influence


def _shards(out: Path) -> Path:
    """Where workers leave what they have measured, until the scores are written."""
    return out.with_name(f"{out.name}.shards")


def _from_features(
    ctx: typer.Context,
    pool: Path,
    targets: dict[str, Path],
    out: Path,
    settings: list[str] | None,
) -> Influence:
    """Compare stored features, with no model.

    Raises InputError for an option or setting that has no effect then.
    """
    import cropi
    from cropi.store.files import require_writable

    if launched().several:
        raise InputError(
            f"--features needs no gradients, and torchrun has started {launched().size} processes; "
            "start one, without torchrun"
        )
    config = section(InfluenceConfig, settings)
    given = [name for name in ctx.params if _was_given(ctx, name)]
    inert = [f"--{name.replace('_', '-')}" for name in given if name not in TAKEN_WITH_FEATURES]
    inert += sorted(config.model_fields_set - {"target"})
    if inert:
        raise InputError(
            f"{', '.join(inert)} has no effect with --features, whose model and settings are "
            "those that they were made with; remove it (the setting target=... may stay)"
        )
    require_writable(out)
    return cropi.score_features(pool, targets, target=config.target)


def _was_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user gave an option, rather than left it at its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
