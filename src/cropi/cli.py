"""The command line. It imports no torch until a command that needs it runs.

An `InputError` becomes one sentence on stderr and exit code 2; anything else that escapes is a
defect and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cropi.artifacts import DISK_ERRORS, unwritable
from cropi.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from cropi.influence import Influence
    from cropi.schema import Prompt

app = typer.Typer(
    name="cropi",
    help="Train language models with verifiable rewards on a tenth of the data: curriculum RL "
    "with off-policy influence guidance (arXiv 2510.26491).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at a config, or check one.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, e.g. selection.ratio=0.2"),
]
Config = Annotated[str, typer.Argument(help="A YAML file, or a preset: pocket, smollm2")]
PolicyOption = Annotated[
    str, typer.Option(help="A checkpoint directory, a hub id, pocket or smollm2")
]
PromptsOption = Annotated[Path, typer.Option(help="Prompts: .jsonl, .json or .parquet")]
VerifierOption = Annotated[
    str,
    typer.Option(
        help="math, exact, numeric, choice, reasoning_gym, file.py:function or pkg:function"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Everything random derives from it")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16")]


INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    # Idle threads that spin, OpenMP's default, made generation 10 to 30 times slower as soon as
    # anything else (our verifier's process, say) wanted a core. It must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = _show_warning
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _fail(str(unwritable(Path(error.filename or "a file"), error)))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
            typer.echo("interrupted; the same command goes on from what is finished", err=True)
        raise


def _fail(message: str) -> NoReturn:
    """Say in one line what is wrong with the input, and end."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


@app.command()
def run(config: Config, settings: Settings = None) -> None:
    """Run a whole curriculum: rollouts, influence, selection, GRPO, evaluation, report.

    A run that was stopped goes on when the same command is given again.

    Examples:

        cropi run pocket

        cropi run my.yaml selection.ratio=0.2 name=wider
    """
    loaded, base = _load(config, settings)
    from cropi.curriculum import run as run_curriculum
    from cropi.progress import Narrator

    console = _console()
    narrator = Narrator(console)
    narrator.say(f"cropi {config}  ->  {loaded.directory}", style="bold")
    directory = run_curriculum(loaded, base, narrator)
    _print_summary(console, directory)


@app.command()
def rollout(
    policy: PolicyOption,
    prompts: PromptsOption,
    out: Annotated[Path, typer.Option(help="The Parquet file to write")],
    verifier: VerifierOption = "math",
    responses: Annotated[int, typer.Option(min=2, help="Responses for each prompt")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option()] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: off")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses generated at once")] = 256,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Sample and judge responses of a policy to prompts.

    Example:

        cropi rollout --policy Qwen/Qwen2.5-1.5B-Instruct --prompts pool.jsonl --out pool.parquet
    """
    from cropi import api
    from cropi.artifacts import require_writable
    from cropi.config import RolloutsConfig

    settings = _section(
        RolloutsConfig,
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        batch_size=batch_size,
    )
    require_writable(out)
    rows = _prompts(prompts, seed)
    with _narrator().phase("rollouts", len(rows)) as bar:
        groups = api.rollout(
            api.load_policy(policy, dtype=dtype, device=device),
            rows,
            out,
            verifier=verifier,
            settings=settings,
            seed=seed,
            progress=lambda done, total: bar.update(done, total),
        )
        informative = sum(g.informative for g in groups)
        bar.note = f"{len(groups):,} prompts, {informative:,} informative -> {out}"


@app.command()
def score(
    policy: PolicyOption,
    rollouts: Annotated[Path, typer.Option(help="Rollouts of the pool (Parquet)")],
    target: Annotated[
        list[str], typer.Option(help="NAME=FILE: rollouts of a validation set; repeatable")
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write")],
    method: Annotated[str, typer.Option(help="exact or sparse")] = "exact",
    ratio: Annotated[float, typer.Option(help="sparse: share of coordinates kept")] = 0.15,
    dim: Annotated[int, typer.Option(help="sparse: dimensions of the sketch")] = 8192,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Influence of each pool prompt on each validation set, under a policy.

    Settings are those of the config's influence section.

    Examples:

        cropi score --policy DIR --rollouts pool.parquet --target gsm8k=val.parquet --out s.parquet

        cropi score ... --method sparse --ratio 0.15 --dim 8192 objective.ratio=sequence
    """
    from cropi import api
    from cropi.artifacts import require_writable
    from cropi.config import InfluenceConfig
    from cropi.tables import write_scores

    chosen = _section(InfluenceConfig, settings, method=method, sparse_ratio=ratio, dim=dim)
    targets = _named_files(target, "target")
    require_writable(out)
    groups = api.read_rollouts(rollouts)
    target_groups = {name: api.read_rollouts(path) for name, path in targets.items()}
    model = api.load_model(policy, dtype=dtype, device=device)
    with _narrator().phase("influence", len(groups)) as bar:
        influence = api.score(
            model,
            groups,
            target_groups,
            settings=chosen,
            seed=seed,
            constant_length=max((g.sampling.max_new_tokens for g in groups), default=512),
            progress=lambda phase, done, total: bar.update(done, total, note=phase),
        )
        bar.note = f"{influence.tokens:,} tokens"
    write_scores(out, influence.table)
    _print_scores(influence, out)


@app.command()
def select(
    scores: Annotated[Path | None, typer.Option(help="Scores of the pool (Parquet)")] = None,
    ratio: Annotated[float, typer.Option(help="Share of the whole pool, in (0, 1]")] = 0.1,
    out: Annotated[Path, typer.Option(help="The Parquet file to write")] = Path(
        "selection.parquet"
    ),
    strategy: Annotated[
        str, typer.Option(help="cropi, random, pass_rate, learnability, full or pkg.module:object")
    ] = "cropi",
    rollouts: Annotated[
        Path | None, typer.Option(help="Rollouts of the pool, for strategies that look at them")
    ] = None,
    fusion_constant: Annotated[float, typer.Option(help="c in 1/(c + rank)")] = 0.0,
    seed: Seed = 0,
) -> None:
    """Choose the prompts of a stage.

    Example:

        cropi select --scores scores.parquet --ratio 0.1 --out selection.parquet
    """
    from cropi import api
    from cropi.artifacts import require_writable
    from cropi.tables import read_scores, write_selection

    require_writable(out)
    selection = api.select(
        read_scores(scores) if scores else None,
        ratio=ratio,
        strategy=strategy,
        rollouts=rollouts,
        seed=seed,
        fusion_constant=fusion_constant,
    )
    write_selection(out, selection)
    narrator = _narrator()
    narrator.say(f"  {len(selection.prompt_ids):,} prompts -> {out}")
    for note in selection.notes:
        narrator.warn(note)


@app.command()
def train(
    policy: PolicyOption,
    prompts: PromptsOption,
    selection: Annotated[Path, typer.Option(help="A selection (Parquet)")],
    out: Annotated[Path, typer.Option(help="The checkpoint directory to write")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps")] = 60,
    verifier: VerifierOption = "math",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    carry_optimizer: Annotated[
        bool, typer.Option(help="Go on with the optimizer stored at --policy")
    ] = False,
    horizon: Annotated[
        int | None, typer.Option(help="Step at which the learning rate's schedule ends")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Train one GRPO stage on a selection, with TRL.

    Settings are those of the config's training section.

    Example:

        cropi train --policy DIR --prompts pool.jsonl --selection selection.parquet --out next

        cropi train ... --steps 60 learning_rate=1e-6 grpo.beta=0.01
    """
    from cropi import api
    from cropi.config import ModelConfig, RolloutsConfig, TrainingConfig

    chosen = _section(TrainingConfig, settings, steps_per_stage=steps, stages=1)
    with _narrator().phase("GRPO", steps) as bar:
        outcome = api.train(
            policy,
            _prompts(prompts, seed),
            _selection(selection),
            out,
            steps=steps,
            verifier=verifier,
            settings=chosen,
            rollouts=_section(RolloutsConfig, max_new_tokens=max_new_tokens),
            model=_section(ModelConfig, path=policy, device=device),
            carry_optimizer=carry_optimizer,
            horizon=horizon,
            seed=seed,
            progress=lambda done, row: bar.update(done, note=f"reward {row.get('reward', 0):.2f}"),
        )
        bar.note = f"{outcome.trained_tokens:,} tokens -> {out}"


@app.command()
def evaluate(
    policy: PolicyOption,
    sets: Annotated[list[str], typer.Option("--set", help="NAME=FILE of prompts; repeatable")],
    verifier: VerifierOption = "math",
    samples: Annotated[int, typer.Option(min=1, help="Responses for each prompt")] = 1,
    temperature: Annotated[float, typer.Option(help="0: greedy")] = 0.0,
    k: Annotated[list[int] | None, typer.Option(help="The k of pass@k; repeatable")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the results as JSON")] = None,
) -> None:
    """Accuracy of a policy on any number of sets.

    Example:

        cropi evaluate --policy DIR --set gsm8k=test.jsonl --samples 8 --temperature 1 --k 1 --k 8
    """
    import dataclasses

    from cropi import api
    from cropi.artifacts import require_writable, write_json
    from cropi.config import EvaluationConfig

    settings = _section(EvaluationConfig, samples=samples, temperature=temperature, k=k or [1])
    if out is not None:
        require_writable(out)
    named = {n: _prompts(path, seed) for n, path in _named_files(sets, "set").items()}
    results = api.evaluate(
        api.load_policy(policy, dtype=dtype, device=device),
        named,
        verifier=verifier,
        settings=settings,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    rows = [
        [r.set, f"{r.prompts:,}", *(f"{v:.1%}" for v in r.pass_at.values()), _statuses(r.statuses)]
        for r in results
    ]
    _print_table(["set", "prompts", *(f"pass@{n}" for n in settings.k), "not judged"], rows)
    if out is not None:
        write_json(out, [dataclasses.asdict(r) for r in results])


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory")]) -> None:
    """Draw a run's report again: one HTML file that works offline.

    Example:

        cropi report runs/pocket
    """
    from cropi.report import report as draw

    draw(run)
    _print_summary(_console(), run)


@config_app.command("show")
def config_show(config: Config, settings: Settings = None) -> None:
    """Print the resolved config: every setting with its value."""
    from cropi.config import to_yaml

    loaded, _ = _load(config, settings)
    typer.echo(to_yaml(loaded), nl=False)


@config_app.command("check")
def config_check(config: Config, settings: Settings = None) -> None:
    """Validate a config, and that the files it names are there, without running anything."""
    from cropi.config import check_files

    loaded, base = _load(config, settings)
    check_files(loaded, base)
    typer.echo(f"{config} is valid")


def _load(config: str, settings: list[str] | None) -> tuple[Any, Path | None]:
    """The validated config and its folder, where relative paths in it start."""
    from cropi.config import load_config

    loaded = load_config(config, settings or [])
    path = Path(config)
    return loaded, path.resolve().parent if path.is_file() else None


def _section(kind: Any, overrides: list[str] | None = None, **values: Any) -> Any:
    """Validate one section of the config from options and dotted settings."""
    from cropi.config import build_section

    return build_section(kind, values, overrides or [])


def _prompts(path: Path, seed: int) -> list[Prompt]:
    from cropi import api

    return api.load_prompts(path, seed)


def _selection(path: Path) -> Any:
    from cropi.tables import read_selection

    return read_selection(path)


def _named_files(values: list[str], what: str) -> dict[str, Path]:
    """Parse NAME=FILE options."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise InputError(
                f"--{what} {value!r} is not NAME=FILE; e.g. --{what} gsm8k=val.parquet"
            )
        if name in found or name in ("prompt_id", "norm"):
            raise InputError(f"--{what} name {name!r} is taken; give every {what} its own name")
        found[name] = Path(path)
    return found


def _console() -> Console:
    """Today's stdout, kept while libraries are silenced by redirecting it; wide where it is a log.

    A file or a pipe has no width, and the 80 columns that rich assumes would fold our tables.
    """
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=160)


def _narrator() -> Any:
    from cropi.progress import Narrator

    return Narrator(_console())


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(header):
        table.add_column(name, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: names may hold what rich would read as markup
    _console().print(table)


def _print_scores(influence: Influence, out: Path) -> None:
    table = influence.table
    rows = [
        [
            name,
            f"{trust.informative:,}",
            f"{trust.effective:.1f}",
            f"{trust.split_half:.2f}",
            f"{float(table.cosines[name].max()):.3f}",
            f"{float(table.cosines[name].mean()):.3f}",
        ]
        for name, trust in influence.trust.items()
    ]
    _print_table(
        ["target", "informative", "effective", "split-half", "max cosine", "mean cosine"], rows
    )
    narrator = _narrator()
    narrator.say(f"  {len(table.prompt_ids):,} of {table.pool_size:,} prompts scored -> {out}")
    for reason, count in table.skipped.items():
        narrator.say(f"  {count:,} skipped: {reason}")
    for note in influence.notes:
        narrator.warn(note)


def _print_summary(console: Console, directory: Path) -> None:
    """The run's headline, a short table and the path of the report."""
    from cropi.progress import Narrator
    from cropi.report import COLUMNS, cells, headline_of, summary_table

    console.print()
    narrator = Narrator(console)
    narrator.say(headline_of(directory), style="bold")
    _print_table(list(COLUMNS), [list(cells(row)) for row in summary_table(directory)])
    narrator.say(f"report: {directory / 'report.html'}")


def _statuses(statuses: Any) -> str:
    return ", ".join(f"{n} {s}" for s, n in statuses.items() if s != "ok" and n) or "0"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()
