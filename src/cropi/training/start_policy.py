"""The policy that training starts from: loaded as it is trained, warmed up, or given adapters.

A short supervised warm-up teaches the answers' format (a model that never answers in the right
form gives no reward to learn from), and adapters are created once, so that every later step finds
them in a checkpoint like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.policy.checkpoints import rewrite_adapter_base
from cropi.policy.loading import Policy, load_policy, quiet_libraries
from cropi.policy.settings import ModelConfig
from cropi.progress import ProgressCallback
from cropi.schema import Prompt
from cropi.store.cached import FINGERPRINT
from cropi.store.files import atomic_folder
from cropi.store.policy_record import write_policy_record
from cropi.training.settings import LoraConfig, TrainingConfig, WarmupConfig
from cropi.training.stage import StagePlan, reraise_disk_errors
from cropi.training.warmup import warm_up


def load_start(plan: StagePlan, device: str | None = None) -> Policy:
    """Load the policy that a stage starts from, as it is trained."""
    return load_trained(plan.start, plan.model, plan.training, device)


def load_trained(
    path: str, model: ModelConfig, training: TrainingConfig, device: str | None = None
) -> Policy:
    """Load a policy in the dtype that it is trained in, otherwise as `model` says."""
    return load_policy(
        path,
        revision=model.revision,
        dtype=training.dtype,
        device=device or model.device,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
    )


def write_start_policy(
    out: Path,
    prompts: Sequence[Prompt],
    *,
    model: ModelConfig,
    settings: WarmupConfig,
    training: TrainingConfig,
    seed: int,
    inputs_fingerprint: str,
    progress: ProgressCallback | None = None,
) -> None:
    """Write the start policy to the folder `out`: `model`, warmed up or with fresh adapters.

    `prompts` are those whose answers it learns to give; `inputs_fingerprint` is recorded.
    """
    policy = load_trained(model.path, model, training)
    with atomic_folder(out) as part, reraise_disk_errors():
        trained, tokens = policy.model, 0
        if settings.steps:
            bf16 = training.engine.grpo.get("bf16")  # the warm-up computes as GRPO will
            work = part / "trainer"
            trained, tokens = warm_up(policy, prompts, settings, work, seed, progress, bf16)
            if training.lora is not None:
                # An adapter's base must be a checkpoint of its own.
                trained.save_pretrained(part / "base")
                policy.tokenizer.save_pretrained(part / "base")
                trained.name_or_path = "./base"
        if training.lora is not None:
            trained = with_adapters(trained, training.lora, seed)
        with quiet_libraries():  # PEFT warns: the base is not there until the last rename
            trained.save_pretrained(part)
        policy.tokenizer.save_pretrained(part)
        rewrite_adapter_base(part, out, out)
        write_policy_record(part, {FINGERPRINT: inputs_fingerprint, "tokens": tokens})


def write_adapters(
    policy: str, model: ModelConfig, training: TrainingConfig, out: Path, seed: int
) -> None:
    """Write fresh adapters for `policy`, and its tokenizer, to the folder `out`."""
    assert training.lora is not None
    loaded = load_trained(policy, model, training)
    adapted = with_adapters(loaded.model, training.lora, seed)
    adapted.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


def with_adapters(model: Any, config: LoraConfig, seed: int) -> Any:
    """Wrap a model with fresh LoRA adapters. Raises InputError if PEFT is missing or refuses."""
    try:
        from peft import LoraConfig as PeftLoraConfig
        from peft import get_peft_model
    except ImportError:
        raise InputError(
            "training.lora needs PEFT; install it with pip install 'cropi[lora]'"
        ) from None
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(
                model,
                PeftLoraConfig(
                    r=config.r,
                    lora_alpha=config.alpha,
                    lora_dropout=config.dropout,
                    target_modules=config.target_modules,
                    task_type="CAUSAL_LM",
                ),
            )
        except ValueError as error:
            raise InputError(
                f"training.lora.target_modules = {config.target_modules!r}: {error}"
            ) from error


def describe(settings: WarmupConfig, lora: LoraConfig | None) -> str:
    """Describe the start policy in a few words."""
    parts = []
    if settings.steps:
        parts.append(f"{settings.steps} supervised steps")
    if lora is not None:
        parts.append(f"LoRA of rank {lora.r}")
    return ", ".join(parts)
