"""Steps 1 and 2: the prompts, free of duplicates and overlap, and the policy to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import RunLog, Seeds, require_same_inputs
from cropi.errors import InputError
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.prompts import (
    PromptSets,
    Room,
    drop_overlong,
    has_chat_template,
    load_prompt_sets,
    load_source,
    write_prompts,
)
from cropi.prompts.overlap import normalised
from cropi.prompts.sets import question_text
from cropi.prompts.settings import PromptsConfig
from cropi.schema import PolicyIdentity, Prompt, fingerprint
from cropi.store.cached import cached, read_record
from cropi.store.files import POLICY_RECORD, write_json
from cropi.store.metrics import CostRow, cost_row
from cropi.store.run_directory import RunDirectory
from cropi.training import start_policy
from cropi.training.settings import TrainingConfig, WarmupConfig
from cropi.verifiers import Judge


def load_run_prompts(
    settings: PromptsConfig,
    policies: Policies,
    judge: Judge,
    seed: int,
    longest_response: tuple[str, int],
    base: Path | None,
    log: RunLog,
) -> PromptSets:
    """Load all prompt sets, handle duplicates and overlong prompts, and try the verifiers.

    The longest response, under its setting, must fit after every prompt where `settings` give no
    limit.
    """
    with log.phase("prompts", "prompts") as bar:
        sets = fitting_prompts(settings, policies.load_model(), seed, longest_response, base)
        judged = {name: judge.readable(prompts) for name, prompts in sets.named().items()}
        sets = sets.without_unreadable(judged)
        bar.note = _sizes(sets)
    log.warn(sets.notes.lines())
    return sets


def fitting_prompts(
    settings: PromptsConfig,
    policy: Policy | PolicyRef,
    seed: int,
    longest_response: tuple[str, int],
    base: Path | None,
) -> PromptSets:
    """The prompt sets without those that leave no room for a response, as `settings` say."""
    tokenizer = policy.tokenizer
    return drop_overlong(
        tokenizer,
        load_prompt_sets(settings, seed, base, templated=has_chat_template(tokenizer)),
        Room.of(settings.max_tokens, policy.context, longest_response),
        settings.overlong,
        settings.chat_template_kwargs,
    )


def record_inputs(
    directory: RunDirectory,
    sets: PromptSets,
    policies: Policies,
    seeds: Mapping[str, int],
    code: Mapping[str, str],
) -> None:
    """Write prompts and manifest. Raises InputError if the run was begun with other inputs.

    `code` identifies what the user's own files do.
    """
    inputs = _inputs(sets, policies.identity, policies.parameters)
    if code:
        inputs["code"] = dict(code)
    require_same_inputs(directory, **inputs)
    write_prompts(directory.prompts("pool"), sets.pool)
    for kind, named in (("validation", sets.validation), ("test", sets.test)):
        for name, prompts in named.items():
            write_prompts(directory.prompts(kind, name), prompts)
    notes = {**sets.notes.as_dict(), "lines": sets.notes.lines()}
    write_json(directory.prompt_notes, notes)
    directory.write_manifest(seeds=seeds, **inputs)
    folder = directory.prompt_notes.parent
    directory.ledger.record(directory.manifest, fingerprint(inputs), [directory.manifest, folder])


def _sizes(sets: PromptSets) -> str:
    validation = sum(map(len, sets.validation.values()))
    test = sum(map(len, sets.test.values()))
    return f"{len(sets.pool):,} in the pool, {validation:,} validation, {test:,} test"


def _inputs(sets: PromptSets, identity: PolicyIdentity, parameters: int) -> dict[str, Any]:
    """What the run is made from besides its settings: model and prompts, by content."""
    return {
        "model": {**dataclasses.asdict(identity), "parameters": parameters},
        "prompts": {
            name: fingerprint([(p.prompt_id, p.content, p.answer, p.source) for p in prompts])
            for name, prompts in sets.named().items()
        },
    }


def make_start_policy(
    out: Path,
    sets: PromptSets,
    policies: Policies,
    settings: WarmupConfig,
    training: TrainingConfig,
    seeds: Seeds,
    base: Path | None,
    log: RunLog,
) -> str:
    """Return the path of the start policy: the configured model, or `out`, made from it.

    It is warmed up or given adapters as `settings` and `training` say.
    """
    model = policies.model
    if not settings.steps and training.lora is None:
        return model.path
    tokenizer = policies.reference(model.path).tokenizer if settings.prompts else None
    templated = has_chat_template(tokenizer)
    prompts = warmup_prompts(settings, sets, seeds.of("warmup", "prompts"), base, templated)
    inputs = (
        training.engine.grpo.get("bf16"),  # the warm-up computes as GRPO will
        policies.result_settings,
        settings.model_dump(),
        training.lora.model_dump() if training.lora else None,
        [(p.prompt_id, p.content, p.answer) for p in prompts] if settings.steps else [],
        seeds.of("warmup"),
    )
    with log.phase("start policy", "warmup") as bar:
        cached(
            out,
            inputs,
            lambda inputs_fingerprint: start_policy.write_start_policy(
                out,
                prompts,
                model=model,
                settings=settings,
                training=training,
                seed=seeds.of("warmup"),
                inputs_fingerprint=inputs_fingerprint,
                progress=bar.update,
            ),
            log.directory.ledger,
        )
        bar.note = start_policy.describe(settings, training.lora)
    return str(out)


def warmup_prompts(
    settings: WarmupConfig,
    sets: PromptSets,
    seed: int,
    base: Path | None = None,
    templated: bool = False,
) -> list[Prompt]:
    """Return the prompts whose answers are imitated: the pool, or those of `settings.prompts`.

    Questions of a validation or test set are left out. Raises InputError if none remain.
    """
    if not settings.prompts:
        return sets.pool
    heldout = {_question(p) for prompts in sets.heldout_sets() for p in prompts}
    loaded = [
        prompt
        for source in settings.prompts
        for prompt in load_source(source, seed, base, templated=templated)
    ]
    usable = [p for p in loaded if _question(p) not in heldout]
    if not usable:
        raise InputError(
            f"all {len(loaded)} of warmup.prompts are also in validation or test, and imitating "
            "those would spoil them; give other prompts"
        )
    return usable


def warmup_costs(start: Path, parameters: int) -> list[CostRow]:
    """Return the cost of the supervised warm-up, none if there was none."""
    tokens = int(read_record(start / POLICY_RECORD).get("tokens", 0))
    return [cost_row("warmup", parameters, forward=tokens, backward=tokens)] if tokens else []


def _question(prompt: Prompt) -> str:
    return normalised(question_text(prompt, None))
