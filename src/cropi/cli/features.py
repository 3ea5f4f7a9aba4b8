"""Commands that store features, and score what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cropi.cli.options import (
    DEVICE,
    DTYPE,
    POLICY_HELP,
    Device,
    Dtype,
    Seed,
    Settings,
    named_files,
    section,
)
from cropi.cli.printing import make_narrator, print_scores
from cropi.errors import InputError

Stored = Literal["float16", "float32"]
TAKEN_WITH_FEATURES = {"features", "target", "out", "settings"}
"""Options of `cropi score` that mean something where features are given."""


def features(
    rollouts: Annotated[Path, typer.Argument(help="Rollouts (Parquet)")],
    policy: Annotated[
        str,
        typer.Option("--policy", "--model", help=POLICY_HELP),
    ],
    out: Annotated[Path, typer.Option(help="The directory to write, or to go on with")],
    sketch: Annotated[
        str, typer.Option(help="The name of a sketch, or package.module:object")
    ] = "adaptive",
    like: Annotated[
        Path | None,
        typer.Option(help="For a target: the pool's features, to be made comparable with"),
    ] = None,
    stored: Annotated[Stored, typer.Option(help="float16 or float32")] = "float16",
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
    settings: Settings = None,
) -> None:
    """Sketch the gradient of each informative prompt, and keep it for `cropi score --features`.

    A call that was stopped goes on when it is given again. Settings are those of the config's
    influence section, e.g. sketch.dim=2048.

    Examples:

        cropi features pool.parquet --model DIR --out pool.features

        cropi features val.parquet --model DIR --out val.features --like pool.features
    """
    import cropi
    from cropi.influence.features.feature_writer import require_store_place
    from cropi.influence.settings import InfluenceConfig

    chosen = section(InfluenceConfig, settings, sketch=sketch)
    require_store_place(out)
    with make_narrator().phase("features") as bar:
        found = cropi.extract_features(
            cropi.load_model(policy, dtype=dtype, device=device),
            rollouts,
            out,
            chosen,
            seed=seed,
            stored=stored,
            like=like,
            checkpoint=policy,
            progress=bar.update,
        )
        bar.note = f"{found.tokens:,} tokens"
    identity = found.store.identity
    reporter = make_narrator()
    reporter.say(f"  {len(found.store):,} of {identity.pool_size:,} prompts sketched -> {out}")
    for reason, count in identity.skipped.items():
        reporter.say(f"  {count:,} skipped: {reason}")


def score_stored(
    ctx: typer.Context, pool: Path, target: list[str], out: Path, settings: list[str] | None
) -> None:
    """Score a store against stores, as `cropi score` does rollouts against rollouts.

    Raises InputError for an option or setting that would change nothing.
    """
    import cropi
    from cropi.influence.settings import InfluenceConfig
    from cropi.store.files import require_writable
    from cropi.store.tables import write_scores

    given = [name for name in ctx.params if _was_given(ctx, name)]
    inert = [f"--{name.replace('_', '-')}" for name in given if name not in TAKEN_WITH_FEATURES]
    chosen = section(InfluenceConfig, settings)
    inert += sorted(chosen.model_fields_set - {"target"})
    if inert:
        raise InputError(
            f"{', '.join(inert)} would change nothing with --features, which were made with a "
            "model and settings of their own; leave it out (the setting target=... may stay)"
        )
    targets = named_files(target, "target")
    require_writable(out)
    influence = cropi.score_features(pool, targets, target=chosen.target)
    write_scores(out, influence.estimate)
    print_scores(influence, out)


def _was_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user gave an option, rather than left it at its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
