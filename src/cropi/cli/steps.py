"""Commands for single steps, for people who bring their own rollouts or their own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.features import score_stored
from cropi.cli.options import (
    DEVICE,
    DTYPE,
    POLICY_HELP,
    VERIFIER,
    Device,
    Dtype,
    PolicyOption,
    PromptsOption,
    Seed,
    Settings,
    VerifierOption,
    named_files,
    prompts_in,
    section,
    selection_in,
)
from cropi.cli.printing import make_narrator, not_judged, print_scores, print_table
from cropi.curriculum.settings import CurriculumConfig
from cropi.errors import InputError
from cropi.evaluation.settings import EvaluationConfig
from cropi.rollouts.engines.transformers import TransformersSettings
from cropi.rollouts.settings import RolloutsConfig
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.settings import default_of
from cropi.sketches.settings import SketchChoice

ROLLOUTS, EVALUATION = RolloutsConfig(), EvaluationConfig()
BATCH_SIZE = TransformersSettings().batch_size
STEPS = default_of(CurriculumConfig, "steps_per_stage")
"""Defaults of commands are those of a config."""
NewTokens = Annotated[int, typer.Option(min=1, help="Longest response, in tokens")]
BatchSize = Annotated[int, typer.Option(min=1, help="Responses generated at once")]


def rollout(
    policy: PolicyOption,
    prompts: PromptsOption,
    out: Annotated[Path, typer.Option(help="The Parquet file to write")],
    verifier: VerifierOption = VERIFIER,
    responses: Annotated[
        int, typer.Option(min=2, help="Responses per prompt")
    ] = ROLLOUTS.responses,
    max_new_tokens: NewTokens = ROLLOUTS.max_new_tokens,
    temperature: Annotated[float, typer.Option()] = ROLLOUTS.temperature,
    top_p: Annotated[float, typer.Option()] = ROLLOUTS.top_p,
    top_k: Annotated[int, typer.Option(help="0: off")] = ROLLOUTS.top_k,
    batch_size: BatchSize = BATCH_SIZE,
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
) -> None:
    """Sample and judge responses of a policy to prompts.

    Example:

        cropi rollout --policy Qwen/Qwen2.5-1.5B-Instruct --prompts pool.jsonl --out pool.parquet
    """
    import cropi
    from cropi.store.files import require_writable

    settings = section(
        RolloutsConfig,
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        engine=_batches(batch_size),
    )
    require_writable(out)
    rows = prompts_in(prompts, seed)
    with make_narrator().phase("rollouts", len(rows)) as bar:
        groups = cropi.rollout(
            cropi.load_policy(policy, dtype=dtype, device=device),
            rows,
            out,
            verifier=verifier,
            settings=settings,
            seed=seed,
            progress=lambda done, total: bar.update(done, total),
        )
        informative = sum(g.informative for g in groups)
        bar.note = f"{len(groups):,} prompts, {informative:,} informative -> {out}"


def score(
    ctx: typer.Context,
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "--targets",
            help="NAME=FILE: rollouts (or features) of a validation set; repeatable",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write")],
    policy: Annotated[str | None, typer.Option(help=POLICY_HELP)] = None,
    rollouts: Annotated[Path | None, typer.Option(help="Rollouts of the pool (Parquet)")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Stored features of the pool, instead of both")
    ] = None,
    sketch: Annotated[
        str, typer.Option(help="exact, or a sketch such as adaptive")
    ] = SketchChoice.default,
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
    settings: Settings = None,
) -> None:
    """Influence of each pool prompt on each validation set, under a policy.

    Settings are those of the config's influence section.

    Examples:

        cropi score --policy DIR --rollouts pool.parquet --target gsm8k=val.parquet --out s.parquet

        cropi score ... --sketch sparse sketch.ratio=0.15 sketch.dim=8192 objective.ratio=sequence

        cropi score --features pool.features --target gsm8k=val.features --out s.parquet
    """
    if features is not None:
        score_stored(ctx, features, target, out, settings)
        return
    if policy is None or rollouts is None:
        raise InputError(
            "cropi score needs --policy and --rollouts, or --features; give the first two, or "
            "what `cropi features` wrote"
        )
    import cropi
    from cropi.influence.settings import InfluenceConfig
    from cropi.store.files import require_writable
    from cropi.store.tables import write_scores

    chosen = section(InfluenceConfig, settings, sketch=sketch)
    targets = named_files(target, "target")
    require_writable(out)
    groups = cropi.read_rollouts(rollouts)
    target_groups = {name: cropi.read_rollouts(path) for name, path in targets.items()}
    model = cropi.load_model(policy, dtype=dtype, device=device)
    with make_narrator().phase("influence", len(groups)) as bar:
        influence = cropi.score(
            model,
            groups,
            target_groups,
            settings=chosen,
            seed=seed,
            checkpoint=policy,
            progress=lambda phase, done, total: bar.update(done, total, note=phase),
        )
        bar.note = f"{influence.tokens:,} tokens"
    write_scores(out, influence.estimate)
    print_scores(influence, out)


def select(
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scores of the pool (Parquet); repeatable, those of earlier stages first"
        ),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Share of the whole pool, in (0, 1]")] = default_of(
        SelectionConfig, "ratio"
    ),
    out: Annotated[Path, typer.Option(help="The Parquet file to write")] = Path(
        "selection.parquet"
    ),
    strategy: Annotated[
        str, typer.Option(help="The name of a strategy, or package.module:object")
    ] = StrategyChoice.default,
    rollouts: Annotated[
        Path | None, typer.Option(help="Rollouts of the pool, for strategies that look at them")
    ] = None,
    seed: Seed = 0,
    settings: Settings = None,
) -> None:
    """Choose the prompts of a stage, as a run does with the same settings.

    Settings are those of the config's selection section.

    Examples:

        cropi select --scores scores.parquet --ratio 0.1 --out selection.parquet

        cropi select --scores stage0.parquet --scores stage1.parquet strategy.memory=0.8
    """
    import cropi
    from cropi.store.files import require_writable
    from cropi.store.tables import read_scores, write_selection

    chosen = section(SelectionConfig, settings, ratio=ratio, strategy=strategy)
    require_writable(out)
    tables = [read_scores(path) for path in scores or []]
    selection = cropi.select(
        tables[-1] if tables else None,
        chosen,
        earlier=tables[:-1],
        rollouts=rollouts,
        seed=seed,
    )
    write_selection(out, selection)
    reporter = make_narrator()
    reporter.say(f"  {len(selection.prompt_ids):,} prompts -> {out}")
    for note in selection.notes:
        reporter.warn(note)


def train(
    policy: PolicyOption,
    prompts: PromptsOption,
    selection: Annotated[Path, typer.Option(help="A selection (Parquet)")],
    out: Annotated[Path, typer.Option(help="The checkpoint directory to write")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps")] = STEPS,
    verifier: VerifierOption = VERIFIER,
    max_new_tokens: NewTokens = ROLLOUTS.max_new_tokens,
    carry_optimizer: Annotated[
        bool, typer.Option(help="Go on with the optimizer stored at --policy")
    ] = False,
    horizon: Annotated[
        int | None, typer.Option(help="Step at which the learning rate's schedule ends")
    ] = None,
    seed: Seed = 0,
    device: Device = DEVICE,
    settings: Settings = None,
) -> None:
    """Train one GRPO stage on a selection, with TRL.

    Settings are those of the config's training section.

    Example:

        cropi train --policy DIR --prompts pool.jsonl --selection selection.parquet --out next

        cropi train ... --steps 60 learning_rate=1e-6 engine.grpo.beta=0.01
    """
    import cropi
    from cropi.policy.settings import ModelConfig
    from cropi.training.settings import TrainingConfig

    chosen = section(TrainingConfig, settings)
    with make_narrator().phase("GRPO", steps) as bar:
        outcome = cropi.train(
            policy,
            prompts_in(prompts, seed),
            selection_in(selection),
            out,
            steps=steps,
            verifier=verifier,
            settings=chosen,
            rollouts=section(RolloutsConfig, max_new_tokens=max_new_tokens),
            model=section(ModelConfig, path=policy, device=device),
            carry_optimizer=carry_optimizer,
            horizon=horizon,
            seed=seed,
            progress=lambda done, row: bar.update(done, note=f"reward {row.get('reward', 0):.2f}"),
        )
        bar.note = f"{outcome.trained_tokens:,} tokens -> {out}"


def evaluate(
    policy: PolicyOption,
    sets: Annotated[list[str], typer.Option("--set", help="NAME=FILE of prompts; repeatable")],
    verifier: VerifierOption = VERIFIER,
    responses: Annotated[
        int, typer.Option(min=1, help="Responses per prompt")
    ] = EVALUATION.responses,
    temperature: Annotated[float, typer.Option(help="0: greedy")] = EVALUATION.temperature,
    k: Annotated[list[int] | None, typer.Option(help="The k of pass@k; repeatable")] = None,
    max_new_tokens: NewTokens = ROLLOUTS.max_new_tokens,
    batch_size: BatchSize = BATCH_SIZE,
    seed: Seed = 0,
    dtype: Dtype = DTYPE,
    device: Device = DEVICE,
    out: Annotated[Path | None, typer.Option(help="Also write the results as JSON")] = None,
) -> None:
    """Accuracy of a policy on any number of sets.

    Example:

        cropi evaluate --policy DIR --set gsm8k=test.jsonl --responses 8 --temperature 1 --k 1 --k 8
    """
    import dataclasses

    import cropi
    from cropi.store.files import require_writable, write_json

    settings = section(
        EvaluationConfig, responses=responses, temperature=temperature, k=k or EVALUATION.k
    )
    if out is not None:
        require_writable(out)
    named = {n: prompts_in(path, seed) for n, path in named_files(sets, "set").items()}
    results = cropi.evaluate(
        cropi.load_policy(policy, dtype=dtype, device=device),
        named,
        verifier=verifier,
        settings=settings,
        rollouts=section(
            RolloutsConfig, max_new_tokens=max_new_tokens, engine=_batches(batch_size)
        ),
        seed=seed,
    )
    rows = [
        [r.set, f"{r.prompts:,}", *(f"{v:.1%}" for v in r.pass_at.values()), not_judged(r.statuses)]
        for r in results
    ]
    print_table(["set", "prompts", *(f"pass@{n}" for n in settings.k), "not judged"], rows)
    if out is not None:
        write_json(out, [dataclasses.asdict(r) for r in results])


def _batches(batch_size: int) -> dict[str, object]:
    """The engine of this process, generating so many responses at once."""
    return {"name": "transformers", "batch_size": batch_size}
