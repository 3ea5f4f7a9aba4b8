"""cropi train: one GRPO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropi.cli.options import (
    Device,
    Model,
    PromptsFile,
    SectionSettings,
    Seed,
    Verifier,
    model_config,
    policy_at,
    section,
    setting,
)
from cropi.cli.printing import make_reporter, report_unjudged
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.cli.rollout import NewTokens, Temperature
from cropi.curriculum.settings import CurriculumConfig
from cropi.settings import default_of
from cropi.training.settings import TrainingConfig

LearningRate = Annotated[
    float | None, setting(TrainingConfig, "learning_rate", text="learning rate of AdamW")
]


@reads_prompts
def train(
    model: Model,
    prompts: PromptsFile,
    reading: PromptReading,
    selection: Annotated[Path, typer.Option(help="A selection (Parquet)")],
    out: Annotated[Path, typer.Option(help="The checkpoint directory to write")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps")] = default_of(
        CurriculumConfig, "steps_per_stage"
    ),
    verifier: Verifier = None,
    responses: Annotated[int | None, setting(TrainingConfig, "responses")] = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    learning_rate: LearningRate = None,
    carry_optimizer: Annotated[
        bool,
        typer.Option("--carry-optimizer", help="Continue with the optimizer of --model"),
    ] = False,
    horizon: Annotated[
        int | None, typer.Option(help="Step at which the learning rate's schedule ends")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Train one GRPO stage on a selection.

    Settings are those of the config's `training` section.

    Examples:

        cropi train --model DIR --prompts pool.jsonl --selection selection.parquet --out next

        cropi train ... --steps 60 --learning-rate 1e-6 engine.grpo.beta=0.01
    """
    import cropi
    from cropi.store.tables import read_selection
    from cropi.verifiers import open_judge

    config = section(
        TrainingConfig,
        settings,
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        learning_rate=learning_rate,
    )
    reporter = make_reporter()
    title = config.engine.progress_title
    with open_judge(verifier) as judge, reporter.phase(title, steps) as bar:
        outcome = cropi.train(
            model,
            reading.prompts(prompts, seed, policy_at(model, None, device)),
            read_selection(selection),
            out,
            config,
            steps=steps,
            verifier=judge,
            model=model_config(model, device=device),
            template_kwargs=reading.template_kwargs,
            carry_optimizer=carry_optimizer,
            horizon=horizon,
            seed=seed,
            progress=lambda done, row: bar.update(done, note=f"reward {row.get('reward', 0):z.2f}"),
        )
        bar.note = f"{outcome.trained_tokens:,} tokens -> {out}"
    report_unjudged(reporter, judge)
