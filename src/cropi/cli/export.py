"""cropi export: a selection in another trainer's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.options import Seed, Verifier, section, setting
from cropi.cli.printing import make_reporter
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.errors import InputError
from cropi.selection.settings import SelectionConfig
from cropi.text import plural
from cropi.verifiers.settings import VerifiersConfig


@reads_prompts
def export(
    place: Annotated[
        Path,
        typer.Argument(metavar="PLACE", help="A run, a stage's folder, a selection, or scores"),
    ],
    to: Annotated[str, typer.Option(help="trl, verl, openrlhf, prime-rl, nemo-gym or jsonl")],
    out: Annotated[Path, typer.Option(help="The folder to write")],
    stage: Annotated[
        int | None, typer.Option(min=0, help="The stage of a run; default: the last one")
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="The arm of a run; default: its strategy, no baseline")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="What was selected from: a file, a folder or a pattern; a run knows"),
    ] = None,
    ratio: Annotated[
        float | None, setting(SelectionConfig, "ratio", text="share of the pool, for scores")
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Write as many prompts drawn at random, too")
    ] = True,
    model: Annotated[
        str | None,
        typer.Option("--model", "--policy", help="The policy to train, for the printed command"),
    ] = None,
    verifier: Verifier = None,
    seed: Seed = 0,
    *,
    reading: PromptReading,
) -> None:
    """Write a selection as rows that another trainer loads, with all their columns.

    Beside them are an equal-size random control, a reward function that calls the verifiers, and
    the command that starts the training.

    Examples:

        cropi export runs/pocket --to trl --out ranked

        cropi export runs/pocket --stage 0 --to verl --out ranked

        cropi export scores.parquet --ratio 0.1 --prompts pool.jsonl --to openrlhf --out ranked
    """
    from cropi.exchange.exports import export_selection
    from cropi.exchange.selection_place import find_selection
    from cropi.store.remote import with_urls

    if ratio is not None:
        section(SelectionConfig, ratio=ratio)
    chosen_at = find_selection(place, arm=arm, stage=stage, ratio=ratio)
    pool = chosen_at.pool
    if prompts is not None:
        pool = reading.prompts_sampled(prompts, seed, chosen_at.selection.prompt_ids)
    elif reading.columns or reading.template_kwargs:
        raise InputError(
            "options that say which columns of a prompt file to read need --prompts FILE; give it, "
            "or leave them out"
        )
    if not pool:
        raise InputError(
            f"{chosen_at.path} does not say what it was selected from; give --prompts FILE"
        )
    judged_by = chosen_at.verifiers
    if verifier is not None:
        judged_by = VerifiersConfig(default=verifier)
    exported = export_selection(
        chosen_at.selection,
        pool,
        to,
        out,
        control=control,
        seed=seed,
        verifiers=judged_by,
        model=model or with_urls(chosen_at.policy),
    )
    reporter = make_reporter()
    chosen = plural(exported.selected, "prompt")
    drawn = f", and {exported.controls:,} drawn at random" if exported.controls else ""
    reporter.say(f"  {chosen} of {len(pool):,}{drawn} -> {out}")
    for note in [*chosen_at.selection.notes, *exported.notes]:
        reporter.warn(note)
    reporter.say(exported.command)
