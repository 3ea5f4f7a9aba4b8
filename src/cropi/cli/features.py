"""cropi features: sketches of a pool's gradients, stored for `cropi score --features`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cropi.cli.options import (
    PLUGIN_HELP,
    Device,
    Dtype,
    Model,
    RolloutsFile,
    SectionSettings,
    Seed,
    load_model,
    section,
)
from cropi.cli.printing import make_reporter, print_outcome
from cropi.cli.torchrun import launched
from cropi.errors import InputError
from cropi.influence.settings import FEATURE_SKETCH, InfluenceConfig
from cropi.text import plural


def features(
    rollouts: RolloutsFile,
    model: Model,
    out: Annotated[Path, typer.Option(help="The directory to write, or to continue")],
    sketch: Annotated[str, typer.Option(help=PLUGIN_HELP)] = FEATURE_SKETCH,
    like: Annotated[
        Path | None,
        typer.Option(help="For a target: the pool's features, with which it will be compared"),
    ] = None,
    stored: Annotated[
        Literal["float16", "float32"], typer.Option(help="Data type of the stored sketches")
    ] = "float16",
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Sketch the gradient of each informative prompt, and keep it for `cropi score --features`.

    A call that was stopped continues when it is given again. Settings are those of the config's
    `influence` section, e.g. `sketch.dim=2048`.

    Examples:

        cropi features pool.parquet --model DIR --out pool.features

        cropi features val.parquet --model DIR --out val.features --like pool.features
    """
    import cropi
    from cropi.influence.features.feature_writer import require_store_place

    config = section(InfluenceConfig, settings, sketch=sketch)
    if launched().several:
        raise InputError(
            f"cropi features is one process, and torchrun has started {launched().size}; start it "
            "without torchrun, or score at once with `torchrun ... -m cropi score`"
        )
    require_store_place(out)
    from cropi.policy.loading import weights_revision

    with make_reporter().phase("features") as bar:
        extraction = cropi.extract_features(
            load_model(model, dtype, device),
            rollouts,
            out,
            config,
            seed=seed,
            stored=stored,
            like=like,
            checkpoint=model,
            revision=weights_revision(model),
            progress=bar.update,
        )
        bar.note = f"{extraction.tokens:,} tokens"
    identity = extraction.store.identity
    total = plural(identity.pool_size, "prompt")
    done = f"{len(extraction.store):,} of {total} sketched -> {out}"
    print_outcome(done, identity.skipped, extraction.notes)
