"""`cropi diagnose`: do the assumptions of influence hold for this model and these rollouts?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cropi.cli.command_paths import Command
from cropi.cli.options import (
    BatchTokens,
    Config,
    Device,
    Dtype,
    Model,
    RolloutsFile,
    SectionSettings,
    Seed,
    Settings,
    Targets,
    load,
    load_model,
    named_files,
    read_sets,
    section,
)
from cropi.cli.printing import make_reporter, print_table
from cropi.diagnostics.diagnosis_settings import (
    FidelitySettings,
    LeaveOutSettings,
    StepSettings,
)
from cropi.errors import InputError
from cropi.gradients.settings import ObjectiveConfig
from cropi.text import shown

if TYPE_CHECKING:
    from cropi.progress import Bar, PhaseProgress
    from cropi.report.pages.diagnosis_page import Diagnosis

diagnose_app = typer.Typer(
    help="Test whether influence holds here: fresh rollouts, true predictions, faithful sketches.",
    no_args_is_help=True,
)

ScoresFile = Annotated[
    Path | None, typer.Option(help="Scores under this model (Parquet); default: computed")
]
Rates = Annotated[str, typer.Option(help="Lengths of the steps, separated by commas")]
Sketches = Annotated[
    str | None,
    typer.Option(
        help="Names separated by commas; sparse:gaussian names a projection; default: all"
    ),
]
Dims = Annotated[str, typer.Option(help="Dimensions of the sketches")]
Ratios = Annotated[str, typer.Option(help="Shares of coordinates (sparse, factorised)")]
MaxPrompts = Annotated[int, typer.Option(min=1, help="Informative prompts to compare, at most")]
TimedPrompts = Annotated[int, typer.Option(min=1, help="How many of these to time sketches on")]
MaxSeconds = Annotated[float | None, typer.Option(help="Budget: seconds per prompt")]
MaxBytes = Annotated[float | None, typer.Option(help="Budget: stored bytes per prompt")]
MinPrecision = Annotated[float | None, typer.Option(help="Budget: enough precision, 0 to 1")]
OutFolder = Annotated[
    Path | None, typer.Option(help="A folder for the page and the numbers (.html, .json)")
]


LEARNING_RATES, DIMS, RATIOS = (
    ",".join(f"{value:g}".replace("e-0", "e-") for value in values)
    for values in (StepSettings.learning_rates, FidelitySettings.dims, FidelitySettings.ratios)
)


@diagnose_app.command(cls=Command)
def staleness(
    rollouts: RolloutsFile,
    model: Model,
    out: OutFolder = None,
    worst: Annotated[int, typer.Option(min=0, help="Stalest prompts to print")] = 10,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """How far a newer policy has moved from the one that sampled the rollouts.

    Effective sample size, KL and ratio tails of stored responses under the policy, and the prompts
    that deserve fresh ones.

    Example:

        cropi diagnose staleness pool.parquet --model runs/my/arms/cropi/stages/2/policy --out pages
    """
    import cropi
    from cropi.diagnostics import diagnose_staleness
    from cropi.report.pages.staleness_page import WORST_COLUMNS, measures, render, worst_rows

    _require_folder(out, "staleness")
    groups = cropi.read_rollouts(rollouts)
    loaded = load_model(model, dtype, device)
    with _phase("log-probs") as (bar, progress):
        report = diagnose_staleness(groups, loaded, batch_tokens=batch_tokens, progress=progress)
        bar.note = f"{report.responses:,} responses, {report.tokens:,} tokens"
    print_table(["measure", "value", ""], [list(row) for row in measures(report)])
    if worst:
        make_reporter().info("")
        print_table(list(WORST_COLUMNS), [list(row) for row in worst_rows(report, worst)])
    about = {"model": model, "rollouts": f"{rollouts}, {len(report.prompts):,} prompts"}
    _conclude(report, render, out, "staleness", about, level=report.level, refresh=report.refresh)


@diagnose_app.command(cls=Command)
def step(
    rollouts: RolloutsFile,
    target: Targets,
    model: Model,
    scores: ScoresFile = None,
    learning_rate: Rates = LEARNING_RATES,
    band_size: Annotated[
        int, typer.Option(min=1, help="Prompts of a step")
    ] = StepSettings.band_size,
    random_bands: Annotated[
        int, typer.Option(min=0, help="Steps on random prompts")
    ] = StepSettings.random_bands,
    single_prompts: Annotated[
        int, typer.Option(min=0, help="Steps on one prompt alone")
    ] = StepSettings.single_prompts,
    out: OutFolder = None,
    batch_tokens: BatchTokens = None,
    seed: Seed = StepSettings.seed,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Does a real gradient step move the validation objective as influence predicts?

    Steps on the most, middling and least influential prompts, on random ones and on single ones,
    all equally long: as one Adam step at that learning rate. Settings are those of the config's
    `influence.objective` section.

    Example:

        cropi diagnose step pool.parquet --target gsm8k=val.parquet --model DIR --out pages
    """
    from cropi.diagnostics import diagnose_step
    from cropi.report.pages.step_page import COLUMNS, render, rows

    chosen = StepSettings(
        tuple(_numbers(learning_rate, "learning-rate")),
        band_size,
        random_bands,
        single_prompts,
        seed,
        batch_tokens,
        section(ObjectiveConfig, settings),
    )
    files = named_files(target, "target")
    _require_folder(out, "step")
    groups, targets = read_sets(rollouts, files)
    loaded = load_model(model, dtype, device)
    with _phase("steps") as (bar, progress):
        report = diagnose_step(
            groups, targets, loaded, scores=scores, settings=chosen, progress=progress
        )
        bar.note = f"{report.prompts} prompts per band"
    print_table(list(COLUMNS), rows(report))
    about = {"model": model, "pool": str(rollouts), **_named("validation", files)}
    about["scores"] = str(scores or "computed, exact")
    _conclude(report, render, out, "step", about, as_predicted=report.as_predicted)


@diagnose_app.command(cls=Command)
def fidelity(
    rollouts: RolloutsFile,
    target: Targets,
    model: Model,
    sketches: Sketches = None,
    dims: Dims = DIMS,
    ratios: Ratios = RATIOS,
    seeds: Annotated[
        int, typer.Option("--sketch-seeds", min=1, help="Seeds per sketch")
    ] = FidelitySettings.seeds,
    max_prompts: MaxPrompts = FidelitySettings.max_prompts,
    timed_prompts: TimedPrompts = FidelitySettings.timed_prompts,
    top: Annotated[
        float, typer.Option(help="The k of precision@k, as a share")
    ] = FidelitySettings.top,
    max_seconds: MaxSeconds = None,
    max_bytes: MaxBytes = None,
    min_precision: MinPrecision = None,
    out: OutFolder = None,
    batch_tokens: BatchTokens = None,
    seed: Seed = FidelitySettings.seed,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Which sketch finds what exact influence finds, and at what cost?

    Precision, Spearman, error and cost of every sketch over seeds, the front of the best, the one
    for a budget. Settings are those of the config's `influence.objective` section.

    Example:

        cropi diagnose fidelity pool.parquet --target v=val.parquet --model DIR --dims 8192
    """
    from cropi.diagnostics import diagnose_fidelity
    from cropi.diagnostics.diagnosis_settings import all_sketches
    from cropi.diagnostics.fidelity import Budget
    from cropi.report.pages.fidelity_page import COLUMNS, render, rows

    chosen = FidelitySettings(
        sketches=tuple(n.strip() for n in sketches.split(",")) if sketches else all_sketches(),
        dims=tuple(_whole_numbers(dims, "dims")),
        ratios=tuple(_numbers(ratios, "ratios")),
        seeds=seeds,
        max_prompts=max_prompts,
        timed_prompts=timed_prompts,
        top=top,
        seed=seed,
        batch_tokens=batch_tokens,
        objective=section(ObjectiveConfig, settings),
        budget=Budget(max_seconds, max_bytes, min_precision),
    )
    files = named_files(target, "target")
    _require_folder(out, "fidelity")
    groups, targets = read_sets(rollouts, files)
    loaded = load_model(model, dtype, device)
    with _phase("fidelity") as (bar, progress):
        report = diagnose_fidelity(groups, targets, loaded, settings=chosen, progress=progress)
        bar.note = f"{len(report.sketches)} sketches, {report.prompts:,} prompts"
    print_table(list(COLUMNS), rows(report))
    about = {"model": model, "pool": str(rollouts), **_named("validation", files)}
    _conclude(report, render, out, "fidelity", about, recommended=report.advice)


@diagnose_app.command(cls=Command)
def loo(
    config: Config,
    settings: Settings = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of each retraining")
    ] = LeaveOutSettings.steps,
    share: Annotated[
        float, typer.Option(help="Of the scored prompts, left out at a time")
    ] = LeaveOutSettings.share,
    random_blocks: Annotated[
        int, typer.Option(min=0, help="Retrainings without random prompts")
    ] = LeaveOutSettings.random_blocks,
    repeats: Annotated[
        int, typer.Option(min=1, help="Trainings on the whole pool, which show the noise")
    ] = LeaveOutSettings.repeats,
    out: OutFolder = None,
    seed: Seed = LeaveOutSettings.seed,
) -> None:
    """Does leaving prompts out of training do what influence predicts?

    Trains the start policy of a run's config again and again: on the whole pool, without each
    validation set's most and least influential prompts, and without random ones. In the run
    directory NAME-loo; what was stopped continues when the same command is given again.

    Example:

        cropi diagnose loo my.yaml --steps 100 --out pages training.learning_rate=1e-6
    """
    from cropi.diagnostics import diagnose_loo
    from cropi.report.pages.leave_out_page import COLUMNS, render, rows

    chosen = LeaveOutSettings(steps, share, random_blocks, repeats, seed)
    loaded, base = load(config, settings)
    _require_folder(out, "loo")
    report = diagnose_loo(loaded, settings=chosen, base=base, reporter=make_reporter())
    print_table(list(COLUMNS), rows(report))
    about = {"config": config, "model": loaded.model.path}
    _conclude(report, render, out, "loo", about, as_predicted=report.as_predicted)


@contextmanager
def _phase(title: str) -> Iterator[tuple[Bar, PhaseProgress]]:
    """A bar for a phase, and the callback that moves it."""
    with make_reporter().phase(title) as bar:
        yield bar, lambda phase, done, total: bar.update(done, total, note=phase)


def _require_folder(out: Path | None, name: str) -> None:
    if out is not None:
        from cropi.report.pages.diagnosis_page import require_writable_output

        require_writable_output(out, name)


def _conclude(
    report: Diagnosis, render: Any, out: Path | None, name: str, about: dict[str, str], **more: Any
) -> None:
    """Print the verdict and its caveats; write page and numbers if there is a folder for them."""
    from cropi import __version__
    from cropi.report.pages.diagnosis_page import write_diagnosis

    reporter = make_reporter()
    reporter.info("")
    reporter.info(report.verdict, style="bold")
    for note in getattr(report, "notes", []):
        reporter.warn(note)
    if out is not None:
        about["version"] = f"cropi {__version__}"
        page = write_diagnosis(report, render(report, about), out, name, about, **more)
        reporter.info(f"page: {page}")


def _named(what: str, files: Mapping[str, Path]) -> dict[str, str]:
    return {f"{what} {name}": str(path) for name, path in files.items()}


def _numbers(text: str, option: str) -> list[float]:
    """Parse numbers separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise InputError(
            f"--{option} {shown(text, 60)} is not a list of numbers; e.g. --{option} 1e-6,1e-5"
        )
    return values


def _whole_numbers(text: str, option: str) -> list[int]:
    values = _numbers(text, option)
    if any(value != int(value) or value < 1 for value in values):
        raise InputError(
            f"--{option} {shown(text, 60)} must be whole numbers from 1, e.g. 2048,8192"
        )
    return [int(value) for value in values]
