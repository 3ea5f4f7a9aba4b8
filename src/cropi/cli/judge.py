"""cropi judge: stored responses judged again, without sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cropi.cli.options import (
    OutFile,
    PromptsFile,
    RolloutsFile,
    SectionSettings,
    Seed,
    Verifier,
    section,
)
from cropi.cli.printing import make_reporter, print_table, report_unjudged
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.text import plural
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.rollouts import Rejudged
    from cropi.rollouts.rejudging import ChangedVerdict
    from cropi.schema import Response


@reads_prompts
def judge(
    rollouts: RolloutsFile,
    prompts: PromptsFile,
    out: OutFile,
    verifier: Verifier = None,
    examples: Annotated[int, typer.Option(min=0, help="Changed responses to show")] = 5,
    seed: Seed = 0,
    settings: SectionSettings = None,
    *,
    reading: PromptReading,
) -> None:
    """Judge stored responses again, without sampling, and show what changed.

    Settings are those of the config's `verifiers` section, e.g. `timeout=5`.

    Example:

        cropi judge pool.parquet --prompts pool.jsonl --verifier math --out judged.parquet
    """
    import cropi
    from cropi.store.files import require_writable
    from cropi.store.lock import exclusive_output
    from cropi.verifiers import open_judge

    config = section(VerifiersConfig, settings, default=verifier)
    require_writable(out)
    groups = cropi.read_rollouts(rollouts)
    rows = reading.prompts_sampled(prompts, seed, [group.prompt_id for group in groups])
    reporter = make_reporter()
    with exclusive_output(out), open_judge(config) as opened:
        with reporter.phase("judging", len(groups)) as bar:
            judged = cropi.judge(rollouts, rows, out, verifier=opened, progress=bar.update)
            bar.note = f"{_summary(judged)} -> {out}"
        if judged.dropped:
            reporter.warn(f"{plural(len(judged.dropped), 'prompt')} left out: unreadable answers")
        report_unjudged(reporter, opened)
    _print_changes(judged.changed, examples)


def _summary(judged: Rejudged) -> str:
    responses = sum(len(group.responses) for group in judged.groups)
    informative = sum(group.informative for group in judged.groups)
    changed = f"{len(judged.changed):,} changed" if judged.changed else "none changed"
    return (
        f"{plural(responses, 'response')}, {changed}; {informative:,} of "
        f"{plural(len(judged.groups), 'prompt')} informative"
    )


def _print_changes(changed: list[ChangedVerdict], examples: int) -> None:
    """Print how often which verdict became which, and some of the responses."""
    kinds: dict[tuple[str, str], int] = {}
    for change in changed:
        kind = (_verdict(change.before), _verdict(change.after))
        kinds[kind] = kinds.get(kind, 0) + 1
    if kinds:
        most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        print_table(["before", "now", "responses"], [[*kind, f"{n:,}"] for kind, n in most])
    if kinds and examples:
        rows = [
            [c.prompt_id, f"{c.response_index}", _verdict(c.before), _verdict(c.after), _end(c)]
            for c in changed[:examples]
        ]
        print_table(["prompt", "response", "before", "now", "its end"], rows)


def _verdict(response: Response) -> str:
    return f"{response.reward:zg}" if response.reward_status == "ok" else response.reward_status


def _end(change: ChangedVerdict) -> str:
    return " ".join(change.after.text.split())[-80:]
