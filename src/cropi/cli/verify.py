"""cropi verify: what a verifier takes for answers and statements, and how often it errs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cropi.cli.options import SectionSettings, Seed, Verifier, section
from cropi.cli.printing import make_reporter, print_table, report_unjudged
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.errors import InputError
from cropi.text import plural
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.schema import Prompt, RolloutGroup
    from cropi.verifiers import Judge
    from cropi.verifiers.explanation import AnswerReading, ExplainedVerdict
    from cropi.verifiers.labels import LabelAgreement, LabelledResponse

WIDEST = 60
"""Characters of a cell."""


@reads_prompts
def verify(
    prompts: Annotated[
        Path | None,
        typer.Argument(help="Prompts with their answers: a file, a folder or a pattern"),
    ] = None,
    verifier: Verifier = None,
    responses: Annotated[
        Path | None, typer.Option(help="Rollouts of the prompts: also judge a sample of them")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many responses")] = 20,
    rows: Annotated[int, typer.Option(min=0, help="Answers to show; 0: all")] = 30,
    label: Annotated[
        Path | None, typer.Option(help="Write the sample as a CSV file in which you correct labels")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A corrected CSV: report where verifier and labels differ")
    ] = None,
    seed: Seed = 0,
    settings: SectionSettings = None,
    *,
    reading: PromptReading,
) -> None:
    """Show what answers are read as, how responses are judged, and how often that is wrong.

    Settings are those of the config's `verifiers` section, e.g. `timeout=5`. With --labels, rewards
    are the table's own; with --verifier or settings as well, the responses are judged again.

    Examples:

        cropi verify pool.jsonl --verifier math

        cropi verify pool.jsonl --responses pool.parquet --label check.csv

        cropi verify --labels check.csv
    """
    import cropi
    from cropi.verifiers import open_judge

    _require_options(prompts, responses, label, labels)
    config = section(VerifiersConfig, settings, default=verifier)
    with open_judge(config) as judge:
        if labels is not None:
            again = verifier is not None or bool(settings)
            _print_agreement(_compared(labels, judge if again else None, config.threshold))
            return
        assert prompts is not None
        groups = [] if responses is None else cropi.read_rollouts(responses)
        asked = reading.prompts_sampled(prompts, seed, [group.prompt_id for group in groups])
        _print_answers(_explained(judge).answers(asked), rows)
        if responses is not None:
            verdicts = _judge_sample(judge, asked, groups, sample, seed)
            _print_verdicts(verdicts)
            report_unjudged(make_reporter(), judge)
            if label is not None:
                _write_labels(label, verdicts)


def _require_options(
    prompts: Path | None, responses: Path | None, label: Path | None, labels: Path | None
) -> None:
    """Raise InputError for options that have no effect together."""
    from cropi.store.files import require_writable

    if labels is not None and (prompts or responses or label):
        raise InputError(
            "--labels reads all that it needs from the table; remove the prompts, --responses and "
            "--label"
        )
    if labels is None and prompts is None:
        raise InputError("give a file of prompts, or --labels with a corrected table")
    if label is not None:
        if responses is None:
            raise InputError("--label writes judged responses; give --responses too")
        if label.exists():
            raise InputError(
                f"{label} exists, and may hold labels that you corrected; give another path"
            )
        require_writable(label)


def _explained(judge: Judge) -> Any:
    from cropi.verifiers.explanation import Explanations

    return Explanations(judge)


def _print_answers(readings: Sequence[AnswerReading], rows: int) -> None:
    shown = [r for r in readings if not r.why_not]
    shown = shown[:rows] if rows else shown
    unread = [r for r in readings if r.why_not]
    reporter = make_reporter()
    print_table(
        ["prompt", "source", "verifier", "answer", "read as"],
        [_answer_cells(r, r.read_as) for r in shown],
    )
    more = len(readings) - len(unread) - len(shown)
    reporter.info(
        f"  {plural(len(readings), 'answer')}" + (f", {more:,} not shown" if more else "")
    )
    kinds = Counter(f"{r.verifier}: {r.read_as.split()[0]}" for r in readings if r.read_as)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(12))
    reporter.info(f"  {listed}")
    if unread:
        reporter.warn(f"{plural(len(unread), 'answer')} cannot be read")
        print_table(
            ["prompt", "source", "verifier", "answer", "why"],
            [_answer_cells(r, r.why_not) for r in unread],
        )


def _answer_cells(reading: AnswerReading, what: str) -> list[str]:
    prompt = reading.prompt
    answer = _both_ends(prompt.answer)
    return [prompt.prompt_id, prompt.source, reading.verifier, answer, _short(what)]


def _judge_sample(
    judge: Judge, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup], count: int, seed: int
) -> list[ExplainedVerdict]:
    """Return that many verdicts, of as many prompts as there are; groups are judged as a whole."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    answered = [group for group in groups if group.prompt_id in by_id]
    if not answered:
        raise InputError(
            f"none of the {plural(len(groups), 'prompt')} in the file of --responses is among the "
            f"{plural(len(prompts), 'prompt')} given; give the prompts that were sampled"
        )
    generator = random.Random(seed)
    drawn = generator.sample(answered, min(count, len(answered)))
    responses = [(g, index, r) for g in drawn for index, r in enumerate(g.responses)]
    verdicts: list[ExplainedVerdict] = _explained(judge).responses(
        [(by_id[g.prompt_id], index, r.text) for g, index, r in responses],
        [r.ids.tolist() for _, _, r in responses],
    )
    return sorted(_spread(verdicts, generator)[:count], key=lambda v: v.prompt.prompt_id)


def _spread(
    verdicts: Sequence[ExplainedVerdict], generator: random.Random
) -> list[ExplainedVerdict]:
    """Return verdicts in random order, one of each prompt before the second of any."""
    places: Counter[str] = Counter()
    order = []
    for verdict in generator.sample(list(verdicts), len(verdicts)):
        order.append((places[verdict.prompt.prompt_id], verdict))
        places[verdict.prompt.prompt_id] += 1
    return [verdict for _, verdict in sorted(order, key=lambda pair: pair[0])]


def _print_verdicts(verdicts: Sequence[ExplainedVerdict]) -> None:
    rows = []
    for explained in verdicts:
        verdict, decision = explained.verdict, explained.decision
        reward = f"{verdict.reward:zg}" if verdict.status == "ok" else verdict.status
        statement = decision.statement if decision else explained.response
        stage = decision.stage if decision else verdict.detail or explained.verifier
        answer = _both_ends(explained.prompt.answer)
        name = f"{explained.prompt.prompt_id}/{explained.response_index}"
        rows.append([name, answer, reward, _short(statement), _short(stage)])
    print_table(["response", "answer", "reward", "statement", "decided by"], rows)


def _write_labels(path: Path, verdicts: Sequence[ExplainedVerdict]) -> None:
    from cropi.store.lock import exclusive_output
    from cropi.verifiers.labels import write_labels

    with exclusive_output(path):
        write_labels(path, verdicts)
    make_reporter().info(
        f"  {plural(len(verdicts), 'response')} -> {path}; correct its column label, then "
        f"cropi verify --labels {path}"
    )


def _compared(path: Path, judge: Judge | None, threshold: float | None) -> LabelAgreement:
    from cropi.verifiers.labels import judged_again, label_agreement, read_labels

    labelled = read_labels(path)
    return label_agreement(judged_again(labelled, judge) if judge else labelled, threshold)


def _print_agreement(result: LabelAgreement) -> None:
    wrong = len(result.false_positives) + len(result.false_negatives)
    compared = result.right + wrong
    if not compared:
        raise InputError("no row has both a reward and a label; fill in the column label")
    print_table(
        ["labelled responses", "agree", "false positives", "false negatives"],
        [[f"{compared:,}", f"{result.right / compared:.1%}",
          f"{len(result.false_positives):,}", f"{len(result.false_negatives):,}"]],
    )  # fmt: skip
    reporter = make_reporter()
    if result.unlabelled:
        reporter.info(f"  {plural(result.unlabelled, 'row')} without a label")
    if result.not_judged:
        reporter.warn(f"{plural(result.not_judged, 'labelled response')} not judged")
    for title, rows in (
        ("rewarded, but labelled wrong", result.false_positives),
        ("not rewarded, but labelled right", result.false_negatives),
    ):
        if rows:
            print_table([title, "answer", "end of the response"], [_example(r) for r in rows[:10]])


def _example(row: LabelledResponse) -> list[str]:
    name = f"{row.prompt.prompt_id}/{row.response_index}"
    return [name, _both_ends(row.prompt.answer), " ".join(row.response.split())[-WIDEST:]]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3]}..."


def _both_ends(answer: str) -> str:
    """A long answer without its middle: a worked solution has its result at the end."""
    line = " ".join(answer.split())
    half = (WIDEST - 3) // 2
    return line if len(line) <= WIDEST else f"{line[:half]}...{line[-half:]}"
