"""cropi select: the prompts of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cropi.cli.options import PLUGIN_HELP, OutFile, SectionSettings, Seed, section, setting
from cropi.cli.printing import make_reporter
from cropi.errors import InputError
from cropi.selection.settings import SelectionConfig
from cropi.text import plural

ScoreFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Scores of the pool (Parquet); repeatable, those of earlier stages first"),
]
PoolRollouts = Annotated[
    Path | None, typer.Option(help="Rollouts of the pool, for strategies that read them")
]
HistoryFiles = Annotated[
    list[Path] | None,
    typer.Option(
        help="All rollouts of the pool so far, training's too; repeatable, oldest first; "
        "default: --rollouts"
    ),
]


def select(
    scores: ScoreFiles = None,
    ratio: Annotated[float | None, setting(SelectionConfig, "ratio")] = None,
    out: OutFile = Path("selection.parquet"),
    strategy: Annotated[
        str | None,
        setting(SelectionConfig, "strategy", text=PLUGIN_HELP),
    ] = None,
    rollouts: PoolRollouts = None,
    history: HistoryFiles = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "--policy", help="The policy, for strategies that read its hidden states"
        ),
    ] = None,
    seed: Seed = 0,
    settings: SectionSettings = None,
) -> None:
    """Choose the prompts of a stage, as a run does with the same settings.

    Settings are those of the config's `selection` section. Without --model the default strategy is
    ranking, which needs scores alone.

    Examples:

        cropi select --scores scores.parquet --ratio 0.1 --out selection.parquet

        cropi select --scores whitened.parquet --rollouts pool.parquet --model DIR
    """
    import cropi
    from cropi.store.files import require_writable
    from cropi.store.lock import exclusive_output
    from cropi.store.tables import read_scores, write_selection

    config = section(SelectionConfig, settings, ratio=ratio, strategy=strategy)
    require_writable(out)
    with exclusive_output(out):
        files = [] if rollouts is None else [rollouts, *(history or [])]
        reading = {} if model is None else _reading(model, config, files)
        estimates = [read_scores(path) for path in scores or []]
        selection = cropi.select(
            estimates[-1] if estimates else None,
            config,
            earlier=estimates[:-1],
            rollouts=rollouts,
            history=history or (),
            seed=seed,
            **reading,
        )
        write_selection(out, selection)
    reporter = make_reporter()
    sets = f" by {', '.join(selection.ranks)}" if selection.ranks else ""
    reporter.info(f"  {plural(len(selection.prompt_ids), 'prompt')}{sets} -> {out}")
    for note in selection.notes:
        reporter.warn(note)


def _reading(model: str, config: SelectionConfig, files: Sequence[Path]) -> dict[str, Any]:
    """What the strategy looks at in the policy; `files` are rollouts of the pool, oldest first."""
    # These load torch, which a selection from scores alone does without.
    from cropi.curriculum.pool_forward_passes import read_current_rates
    from cropi.policy.hidden_states import prompt_hidden_states
    from cropi.policy.loading import as_model
    from cropi.rollouts import read_rollouts
    from cropi.selection import find_strategy, needs_of

    if not files:
        raise InputError(f"--model {model} has no effect without --rollouts; give both, or neither")
    needs = needs_of(find_strategy(config.strategy))
    if not (needs.hidden_states or needs.current):
        raise InputError(
            f"--model {model} has no effect with strategy {config.strategy.name}, which looks at "
            "no policy; leave it out, or choose another strategy"
        )
    pool = read_rollouts(files[0])
    loaded, reading = as_model(model), dict[str, Any]()
    if needs.hidden_states:
        reading["hidden_states"] = prompt_hidden_states(loaded, pool)
    if needs.current:
        reading["current"] = read_current_rates(loaded, pool, files[1:], None, None).rates
    return reading
