"""cropi evaluate: accuracy of a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.options import (
    Device,
    Dtype,
    Model,
    SectionSettings,
    Seed,
    Verifier,
    engine_settings,
    named_files,
    policy_at,
    section,
    setting,
    split_settings,
)
from cropi.cli.printing import make_reporter, print_table, report_unjudged
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.cli.rollout import BatchSize, NewTokens
from cropi.evaluation.settings import EvaluationConfig
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import EvaluationResult

PassAt = Annotated[
    list[int] | None, setting(EvaluationConfig, "k", text="the k of pass@k; repeatable")
]


@reads_prompts
def evaluate(
    model: Model,
    sets: Annotated[list[str], typer.Option("--set", help="NAME=FILE of prompts; repeatable")],
    reading: PromptReading,
    verifier: Verifier = None,
    responses: Annotated[int | None, setting(EvaluationConfig, "responses")] = None,
    temperature: Annotated[float | None, setting(EvaluationConfig, "temperature")] = None,
    k: PassAt = None,
    max_new_tokens: NewTokens = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the results as JSON")] = None,
    settings: SectionSettings = None,
) -> None:
    """Accuracy of a policy on any number of sets.

    Settings are those of the config's `evaluation` section, and `engine` of `rollouts`.

    Example:

        cropi evaluate --model DIR --set gsm8k=test.jsonl --responses 8 --temperature 1 --k 1 --k 8
    """
    import cropi
    from cropi.store.files import require_writable, write_json
    from cropi.store.lock import exclusive_output
    from cropi.verifiers import open_judge

    of_engine, rest = split_settings("engine", settings)
    config = section(
        EvaluationConfig,
        rest,
        inert=["every", "targeted"],
        responses=responses,
        temperature=temperature,
        k=k or None,
        max_new_tokens=max_new_tokens,
    )
    rollouts = section(RolloutsConfig, engine_settings(of_engine, batch_size))
    policy = policy_at(model, dtype, device)
    if out is not None:
        require_writable(out)
    files = named_files(sets, "set")
    named = {name: reading.prompts(path, seed, policy) for name, path in files.items()}
    held = exclusive_output(out) if out is not None else nullcontext()
    with held, open_judge(verifier) as judge:
        judge.check([prompt for prompts in named.values() for prompt in prompts])
        results = cropi.evaluate(
            policy,
            named,
            config,
            rollouts=rollouts,
            verifier=judge,
            template_kwargs=reading.template_kwargs,
            seed=seed,
        )
        if out is not None:
            write_json(out, [dataclasses.asdict(result) for result in results])
    print_accuracies(results, config.k)
    report_unjudged(make_reporter(), judge)


def print_accuracies(results: Sequence[EvaluationResult], ks: Sequence[int]) -> None:
    """A line per set: prompts, pass@k for each k, and responses without a verdict."""
    rows = [
        [r.set, f"{r.prompts:,}", *(f"{v:.1%}" for v in r.pass_at.values()), unjudged(r.statuses)]
        for r in results
    ]
    print_table(["set", "prompts", *(f"pass@{k}" for k in ks), "not judged"], rows)


def unjudged(statuses: Mapping[str, int]) -> str:
    """How many responses have no verdict, by status."""
    return (
        ", ".join(f"{n} {status}" for status, n in statuses.items() if status != "ok" and n) or "0"
    )
