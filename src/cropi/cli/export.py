"""cropi export: a selection in another trainer's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cropi.cli.options import Seed, Verifier, section, setting
from cropi.cli.printing import make_reporter
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.errors import InputError
from cropi.selection.settings import SelectionConfig
from cropi.text import plural
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.exchange.stored_selection import StoredSelection
    from cropi.schema import Prompt


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
        typer.Option(
            help="The prompts selected from: a file, a folder or a pattern; not for a run"
        ),
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
    from cropi.exchange.exports import DEFAULT_MODEL, export_selection
    from cropi.exchange.stored_selection import find_selection
    from cropi.store.remote import with_urls

    if ratio is not None:
        section(SelectionConfig, ratio=ratio)
    stored = find_selection(place, arm=arm, stage=stage, ratio=ratio)
    pool = _pool(stored, prompts, reading, seed)
    exported = export_selection(
        stored.selection,
        pool,
        to,
        out,
        control=control,
        seed=seed,
        verifiers=stored.verifiers if verifier is None else VerifiersConfig(default=verifier),
        model=model or with_urls(stored.policy),
    )
    reporter = make_reporter()
    selected = plural(exported.selected, "prompt")
    drawn = f", and {exported.controls:,} drawn at random" if exported.controls else ""
    reporter.info(f"  {selected} of {len(pool):,}{drawn} -> {out}")
    lost = stored.without_policy if model is None else ""
    instead = [f"{lost}; put the policy to train in the place of {DEFAULT_MODEL}"] if lost else []
    for note in [*stored.selection.notes, *exported.notes, *instead]:
        reporter.warn(note)
    reporter.info(exported.command)


def _pool(
    stored: StoredSelection, prompts: Path | None, reading: PromptReading, seed: int
) -> Sequence[Prompt]:
    """The prompts that were selected from: those of a file, or what the selection knows.

    Raises InputError if there are none, or for options of a file that was not given.
    """
    if prompts is not None:
        return reading.prompts_sampled(prompts, seed, stored.selection.prompt_ids)
    if reading.columns or reading.template_kwargs:
        raise InputError(
            "options that say which columns of a prompt file to read need --prompts FILE; give it, "
            "or leave them out"
        )
    if not stored.pool:
        raise InputError(
            f"{stored.path} does not say what it was selected from; give --prompts FILE"
        )
    return stored.pool
