"""cropi rank: the prompts to train on next, from the rollouts of anybody's run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cropi.cli.options import PLUGIN_HELP, SectionSettings, Seed, section, setting
from cropi.cli.printing import make_reporter, print_table
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.selection.settings import SelectionConfig
from cropi.text import plural

BY_REWARDS = "learnability"
"""The strategy that ranks without a policy."""


@reads_prompts
def rank(
    rollouts: Annotated[
        Path, typer.Option(help="A trainer's rollouts: a folder, searched at any depth, or a file")
    ],
    out: Annotated[Path, typer.Option(help="The directory to write")],
    reading: PromptReading,
    prompts: Annotated[
        Path | None,
        typer.Option(help="The rows of your data, which the responses are joined with"),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="How the rollouts are written; default: as recognised"),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="The column (or key) of the reward; repeatable: their sum"),
    ] = None,
    pass_at: Annotated[
        float | None,
        typer.Option(help="The reward at which a response passes; default: rewards are shares"),
    ] = None,
    ratio: Annotated[float | None, setting(SelectionConfig, "ratio")] = None,
    strategy: Annotated[
        str | None, typer.Option(help=f"{PLUGIN_HELP}; default: {BY_REWARDS}")
    ] = None,
    seed: Seed = 0,
    settings: SectionSettings = None,
) -> None:
    """Rank the prompts of a run by what its own rollouts say, and select those to train on next.

    Settings are those of the config's `selection` section.

    Examples:

        cropi rank --rollouts runs/grpo/completions --prompts train.jsonl --out ranked

        cropi rank --rollouts rollouts.jsonl --ratio 0.2 --pass-at 1 --out ranked
    """
    from cropi.exchange.imports.pairing import pair_with_log, pair_with_prompts
    from cropi.exchange.imports.rollout_folder import read_rollout_log
    from cropi.exchange.ranking.ranked_folder import require_apart, write_folder
    from cropi.exchange.ranking.ranking import gather
    from cropi.exchange.ranking.ranking import rank as rank_pool
    from cropi.store.lock import exclusive_output

    require_apart(out, rollouts)
    config = section(SelectionConfig, settings, ratio=ratio, strategy=strategy or BY_REWARDS)
    reporter = make_reporter()
    with exclusive_output(out):
        with reporter.phase("reading") as bar:
            log = read_rollout_log(rollouts, format_, reward or [])
            bar.note = f"{plural(len(log.responses), 'response')}, format {log.format}"
        with reporter.phase("ranking") as bar:
            rows = reading.prompts_alone(prompts, seed) if prompts is not None else None
            pairing = pair_with_log(log) if rows is None else pair_with_prompts(log, rows)
            ranking = rank_pool(gather(log, pairing, pass_at), config, seed)
            bar.note = f"{len(ranking.selection.prompt_ids):,} selected"
        write_folder(out, ranking, {"rollouts": str(rollouts), "seed": seed})
    print_ranking(ranking, out)


def print_ranking(ranking: Any, out: Path) -> None:
    """What was ranked, what became of it, and what deserves doubt."""
    reporter = make_reporter()
    total = len(ranking.reasons)
    rows = [[reason, f"{n:,}", f"{n / total:.1%}"] for reason, n in ranking.counts.most_common()]
    print_table(["prompts", "", "share"], rows)
    suspected = sum(each is not None for each in ranking.logged.suspicions)
    if suspected:
        reporter.say(
            f"  {plural(suspected, 'prompt')} whose answer or reward looks wrong: `suspected` in "
            f"{out / 'ranked.parquet'}"
        )
    for note in ranking.notes:
        reporter.warn(note)
    reporter.say(f"  {plural(len(ranking.selection.prompt_ids), 'prompt')} -> {out}")
