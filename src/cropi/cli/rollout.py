"""cropi rollout: sample and judge responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cropi.cli.options import (
    Device,
    Dtype,
    Model,
    OutFile,
    PromptsFile,
    SectionSettings,
    Seed,
    Verifier,
    engine_settings,
    policy_at,
    scale_and_rest,
    section,
    setting,
)
from cropi.cli.printing import make_reporter, report_unjudged
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.errors import InputError
from cropi.rollouts.engines.transformers import TransformersSettings
from cropi.rollouts.settings import RolloutsConfig
from cropi.text import plural

if TYPE_CHECKING:
    from cropi.progress import ProgressReporter
    from cropi.schema import Response

MANY_CUT = 0.1
"""Share of responses that were cut off, above which a line says so."""
BatchSize = Annotated[int | None, setting(TransformersSettings, "batch_size")]
NewTokens = Annotated[int | None, setting(RolloutsConfig, "max_new_tokens")]

Temperature = Annotated[float | None, setting(RolloutsConfig, "temperature")]


@reads_prompts
def rollout(
    model: Model,
    prompts: PromptsFile,
    out: OutFile,
    reading: PromptReading,
    verifier: Verifier = None,
    responses: Annotated[int | None, setting(RolloutsConfig, "responses")] = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Sample responses of a policy to prompts, and judge them.

    A call that was stopped continues when it is given again. Settings are those of the config's
    `rollouts` section, e.g. `top_p=0.9`; `scale.ray.workers=8` samples with Ray's workers.

    Example:

        cropi rollout --model Qwen/Qwen2.5-1.5B-Instruct --prompts pool.jsonl --out pool.parquet
    """
    import cropi
    from cropi.execution import executor_for, showing_workers
    from cropi.store.files import require_writable
    from cropi.verifiers import open_judge

    scale, rest = scale_and_rest(settings)
    config = section(
        RolloutsConfig,
        engine_settings(rest, batch_size),
        inert=["validation_responses"],
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    executor = executor_for(scale)
    if executor is not None and config.engine.policies != "any":
        raise InputError(
            f"scale has no effect with the engine {config.engine.name!r}, whose server samples "
            "many prompts at once as it is; remove it, or use the engine transformers"
        )
    policy = policy_at(model, dtype, device)
    require_writable(out)
    reporter = make_reporter()
    with open_judge(verifier) as judge:
        rows = judge.readable(reading.prompts(prompts, seed, policy))
        with reporter.phase("rollouts", len(rows)) as bar:
            groups = cropi.rollout(
                policy,
                rows,
                out,
                config,
                verifier=judge,
                template_kwargs=reading.template_kwargs,
                seed=seed,
                executor=executor,
                progress=showing_workers(bar.update, executor),
            )
            informative = sum(group.informative for group in groups)
            bar.note = f"{plural(len(groups), 'prompt')}, {informative:,} informative -> {out}"
        sampled = [response for group in groups for response in group.responses]
        _report_rewards(reporter, sampled)
        report_unjudged(reporter, judge, Counter(r.reward_status for r in sampled))


def _report_rewards(reporter: ProgressReporter, responses: Sequence[Response]) -> None:
    """Say the mean reward, and how many responses were cut off: they are rarely right."""
    rewards = [r.reward for r in responses if r.reward_status == "ok"]
    if rewards:
        reporter.info(f"  mean reward {sum(rewards) / len(rewards):z.3g}")
    cut = sum(r.finish_reason == "length" for r in responses)
    if cut > MANY_CUT * len(responses):
        reporter.warn(
            f"{cut / len(responses):.0%} of {plural(len(responses), 'response')} reached "
            "--max-new-tokens before they ended"
        )
