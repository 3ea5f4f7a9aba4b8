"""`cropi diagnose`: is what influence rests on true for this model and these rollouts?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from cropi.cli.printing import make_console, make_narrator, print_table
from cropi.errors import InputError

if TYPE_CHECKING:
    from cropi.influence.scorer import PhaseProgress
    from cropi.progress import Bar
    from cropi.report.pages.diagnosis_page import Diagnosis
    from cropi.schema import RolloutGroup

diagnose_app = typer.Typer(
    help="Test what influence rests on: fresh rollouts, true predictions, faithful sketches.",
    no_args_is_help=True,
)

ModelOption = Annotated[
    str,
    typer.Option("--model", "--policy", help=POLICY_HELP),
]
ValidationOption = Annotated[
    list[str],
    typer.Option(
        "--validation", "--target", help="NAME=FILE: rollouts of a validation set; repeatable"
    ),
]
PoolArgument = Annotated[Path, typer.Argument(help="Rollouts of the pool (Parquet)")]
ScoresOption = Annotated[
    Path | None, typer.Option(help="Scores under this model (Parquet); default: computed")
]
RatesOption = Annotated[str, typer.Option(help="One or several, by commas: lengths of the steps")]
SketchesOption = Annotated[
    str | None,
    typer.Option(
        help="Names separated by commas; sparse:gaussian names a projection; default: all"
    ),
]
RatiosOption = Annotated[str, typer.Option(help="Shares of coordinates (sparse, factorised)")]
PrecisionOption = Annotated[float | None, typer.Option(help="Budget: enough precision, 0 to 1")]
OutOption = Annotated[
    Path | None, typer.Option(help="A folder for the page and the numbers (.html, .json)")
]
BatchTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Padded tokens in one forward pass; default: 16384, 4096 on a CPU"),
]


@diagnose_app.command()
def staleness(
    rollouts: Annotated[Path, typer.Argument(help="Rollouts (Parquet)")],
    model: ModelOption,
    out: OutOption = None,
    worst: Annotated[int, typer.Option(min=0, help="Stalest prompts to print")] = 10,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
) -> None:
    """How far a newer policy has moved from the one that sampled the rollouts.

    Effective sample size, KL and ratio tails of stored responses under the policy, and the prompts
    that deserve fresh ones.

    Example:

        cropi diagnose staleness pool.parquet --model runs/my/arms/cropi/stages/2/policy --out look
    """
    import cropi
    from cropi.diagnostics import diagnose_staleness
    from cropi.report.pages.staleness_page import (
        WORST_COLUMNS,
        measures,
        render,
        worst_rows,
    )

    _require_folder(out, "staleness")
    groups = cropi.read_rollouts(rollouts)
    loaded = cropi.load_model(model, dtype=dtype, device=device)
    with _watched("log-probs") as (bar, progress):
        report = diagnose_staleness(groups, loaded, batch_tokens=batch_tokens, progress=progress)
        bar.note = f"{report.responses:,} responses, {report.tokens:,} tokens"
    print_table(["measure", "value", ""], [list(row) for row in measures(report)])
    if worst:
        make_console().print()
        print_table(list(WORST_COLUMNS), [list(row) for row in worst_rows(report, worst)])
    about = {"model": model, "rollouts": f"{rollouts}, {len(report.prompts):,} prompts"}
    _conclude(report, render, out, "staleness", about, level=report.level, refresh=report.refresh)


@diagnose_app.command()
def step(
    pool: PoolArgument,
    validation: ValidationOption,
    model: ModelOption,
    scores: ScoresOption = None,
    learning_rate: RatesOption = "1e-6,1e-5,1e-4",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts in a band")] = 64,
    repeats: Annotated[int, typer.Option(min=0, help="Random bands")] = 8,
    singles: Annotated[int, typer.Option(min=0, help="Steps on one prompt alone")] = 30,
    out: OutOption = None,
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
    settings: Settings = None,
) -> None:
    """Does a real gradient step move the validation objective as influence predicts?

    Steps on the most, middling and least influential prompts, on random ones and on single ones,
    all equally long: as one Adam step at that learning rate. Settings are those of the config's
    influence.objective section.

    Example:

        cropi diagnose step pool.parquet --validation gsm8k=val.parquet --model DIR --out look
    """
    import cropi
    from cropi.diagnostics import diagnose_step
    from cropi.gradients.settings import ObjectiveConfig
    from cropi.report.pages.step_page import COLUMNS, render, rows

    objective = section(ObjectiveConfig, settings)
    rates = _numbers(learning_rate, "learning-rate")
    sets = named_files(validation, "validation")
    _require_folder(out, "step")
    groups, targets = _read(pool, sets)
    loaded = cropi.load_model(model, dtype=dtype, device=device)
    with _watched("steps") as (bar, progress):
        report = diagnose_step(
            groups,
            targets,
            loaded,
            scores=scores,
            learning_rates=rates,
            prompts=prompts,
            repeats=repeats,
            singles=singles,
            objective=objective,
            seed=seed,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        bar.note = f"{report.prompts} prompts a band"
    print_table(list(COLUMNS), rows(report))
    about = {"model": model, "pool": str(pool), **_named("validation", sets)}
    about["scores"] = str(scores or "computed, exact")
    _conclude(report, render, out, "step", about, as_predicted=report.as_predicted)


@diagnose_app.command()
def fidelity(
    pool: PoolArgument,
    validation: ValidationOption,
    model: ModelOption,
    sketches: SketchesOption = None,
    dims: Annotated[str, typer.Option(help="Dimensions of the sketches")] = "2048,8192,32768",
    ratios: RatiosOption = "1,0.15,0.05,0.01",
    seeds: Annotated[int, typer.Option(min=1, help="Sketches of each kind")] = 5,
    prompts: Annotated[int, typer.Option(min=1, help="Informative prompts to compare")] = 800,
    timed: Annotated[int, typer.Option(min=1, help="Prompts of these to time sketches on")] = 64,
    top: Annotated[float, typer.Option(help="The k of precision@k, as a share")] = 0.1,
    max_seconds: Annotated[float | None, typer.Option(help="Budget: seconds a prompt")] = None,
    max_bytes: Annotated[float | None, typer.Option(help="Budget: stored bytes a prompt")] = None,
    min_precision: PrecisionOption = None,
    out: OutOption = None,
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
    settings: Settings = None,
) -> None:
    """Which sketch finds what exact influence finds, and at what cost?

    Precision, Spearman, error and cost of every sketch over seeds, the front of the best, the one
    for a budget. Settings are those of the config's influence.objective section.

    Example:

        cropi diagnose fidelity pool.parquet --validation v=val.parquet --model DIR --dims 8192
    """
    import cropi
    from cropi.diagnostics import diagnose_fidelity
    from cropi.diagnostics.fidelity import Budget
    from cropi.diagnostics.fidelity_experiment import FidelitySettings, all_sketches
    from cropi.gradients.settings import ObjectiveConfig
    from cropi.report.pages.fidelity_page import COLUMNS, render, rows

    chosen = FidelitySettings(
        sketches=tuple(n.strip() for n in sketches.split(",")) if sketches else all_sketches(),
        dims=tuple(_whole_numbers(dims, "dims")),
        ratios=tuple(_numbers(ratios, "ratios")),
        seeds=seeds,
        prompts=prompts,
        timed=timed,
        share=top,
        seed=seed,
        batch_tokens=batch_tokens,
        objective=section(ObjectiveConfig, settings),
        budget=Budget(max_seconds, max_bytes, min_precision),
    )
    sets = named_files(validation, "validation")
    _require_folder(out, "fidelity")
    groups, targets = _read(pool, sets)
    loaded = cropi.load_model(model, dtype=dtype, device=device)
    with _watched("fidelity") as (bar, progress):
        report = diagnose_fidelity(groups, targets, loaded, settings=chosen, progress=progress)
        bar.note = f"{len(report.sketches)} sketches, {report.prompts:,} prompts"
    print_table(list(COLUMNS), rows(report))
    about = {"model": model, "pool": str(pool), **_named("validation", sets)}
    _conclude(report, render, out, "fidelity", about, recommended=report.advice)


@contextmanager
def _watched(title: str) -> Iterator[tuple[Bar, PhaseProgress]]:
    """A bar for a phase, and the callback that moves it."""
    with make_narrator().phase(title) as bar:
        yield bar, lambda phase, done, total: bar.update(done, total, note=phase)


def _read(
    pool: Path, sets: Mapping[str, Path]
) -> tuple[list[RolloutGroup], dict[str, list[RolloutGroup]]]:
    """The rollouts of the pool and of each validation set."""
    import cropi

    return cropi.read_rollouts(pool), {
        name: cropi.read_rollouts(path) for name, path in sets.items()
    }


def _require_folder(out: Path | None, name: str) -> None:
    if out is not None:
        from cropi.report.pages.diagnosis_page import require_writable_output

        require_writable_output(out, name)


def _conclude(
    report: Diagnosis, render: Any, out: Path | None, name: str, about: dict[str, str], **more: Any
) -> None:
    """Say the verdict and what blurs it; write page and numbers where asked."""
    from cropi import __version__
    from cropi.report.pages.diagnosis_page import write_diagnosis

    reporter = make_narrator()
    make_console().print()
    reporter.say(report.verdict, style="bold")
    for note in getattr(report, "notes", []):
        reporter.warn(note)
    if out is not None:
        about["version"] = f"cropi {__version__}"
        page = write_diagnosis(report, render(report, about), out, name, about, **more)
        reporter.say(f"page: {page}")


def _named(what: str, files: Mapping[str, Path]) -> dict[str, str]:
    return {f"{what} {name}": str(path) for name, path in files.items()}


def _numbers(text: str, option: str) -> list[float]:
    """Parse numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--{option} {text!r} is no list of numbers; e.g. --{option} 1e-6,1e-5"
        ) from None


def _whole_numbers(text: str, option: str) -> list[int]:
    found: Sequence[float] = _numbers(text, option)
    if any(value != int(value) or value < 1 for value in found):
        raise InputError(f"--{option} {text!r} must be whole numbers from 1, e.g. 2048,8192")
    return [int(value) for value in found]
