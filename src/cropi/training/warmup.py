"""The policy a curriculum starts from, where it is not simply the given one.

A short supervised warm-up teaches the answers' format (a model that never answers in the right
form gives no reward to learn from), and adapters are created once, so that every later step finds
them in a checkpoint like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.policy.checkpoints import settle_adapter
from cropi.policy.loading import (
    Policy,
    load_policy,
    quiet_libraries,
    reraise_out_of_memory,
    resolve_device,
)
from cropi.policy.settings import ModelConfig
from cropi.schema import Prompt
from cropi.store.cached import FINGERPRINT
from cropi.store.files import atomic_folder
from cropi.store.policy_record import write_policy_record
from cropi.training.settings import LoraConfig, TrainingConfig, WarmupConfig
from cropi.training.stage import reraise_disk_errors


def write_start_policy(
    out: Path,
    prompts: Sequence[Prompt],
    *,
    model: ModelConfig,
    settings: WarmupConfig,
    training: TrainingConfig,
    seed: int,
    inputs_fingerprint: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the start policy to the folder `out`: `model`, warmed up or with fresh adapters.

    `prompts` are those whose answers it learns to give; `inputs_fingerprint` is recorded.
    """
    bf16 = getattr(training.engine.settings, "grpo", {}).get(
        "bf16"
    )  # the warm-up computes as GRPO will
    policy = _load(model.path, model, training)
    with atomic_folder(out) as part, reraise_disk_errors():
        trained, tokens = policy.model, 0
        if settings.steps:
            trained, tokens = warm_up(
                policy, prompts, settings, part / "trainer", seed, progress, bf16
            )
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
        settle_adapter(part, out, out)
        write_policy_record(part, {FINGERPRINT: inputs_fingerprint, "tokens": tokens})


def write_adapters(
    policy: str, model: ModelConfig, training: TrainingConfig, out: Path, seed: int
) -> None:
    """Write fresh adapters for `policy`, and its tokenizer, to the folder `out`."""
    assert training.lora is not None
    loaded = _load(policy, model, training)
    adapted = with_adapters(loaded.model, training.lora, seed)
    adapted.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


def _load(path: str, model: ModelConfig, training: TrainingConfig) -> Policy:
    return load_policy(
        path,
        revision=model.revision,
        dtype=training.dtype,
        device=model.device,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
    )


def describe(settings: WarmupConfig, lora: LoraConfig | None) -> str:
    """Describe the start policy in a few words."""
    parts = []
    if settings.steps:
        parts.append(f"{settings.steps} supervised steps")
    if lora is not None:
        parts.append(f"LoRA of rank {lora.r}")
    return ", ".join(parts)


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


def warm_up(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: WarmupConfig,
    work: Path,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    bf16: bool | None = None,
) -> tuple[Any, int]:
    """Supervised steps with TRL's SFTTrainer, loss on the answers only.

    `bf16` asks for mixed precision; by default it is used on a GPU only.
    Return the model and the tokens it was trained on, prompts included.
    """
    import shutil

    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from cropi.training.divergence import require_converging

    on_gpu = resolve_device(str(policy.model.device)).type == "cuda"
    rows = [supervised_row(p, config.template) for p in prompts]
    with quiet_libraries():
        trainer = SFTTrainer(
            model=policy.model,
            args=_sft_config(config, work, seed, on_gpu, on_gpu if bf16 is None else bf16),
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        if progress:
            trainer.add_callback(_progress_callback(progress, config.steps))
        with reraise_out_of_memory(
            "the warm-up", f"lower warmup.batch_size (now {config.batch_size})"
        ):
            trainer.train()
    require_converging(policy.model, config.steps, "warmup.learning_rate", config.learning_rate)
    shutil.rmtree(work, ignore_errors=True)
    return policy.model, int(trainer.state.num_input_tokens_seen)


def _sft_config(config: WarmupConfig, work: Path, seed: int, on_gpu: bool, bf16: bool) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(work),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.1 * config.steps),
        completion_only_loss=True,
        max_length=None,
        seed=seed,
        use_cpu=not on_gpu,
        bf16=bf16,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        include_num_input_tokens_seen="non_padding",
    )


def supervised_row(prompt: Prompt, template: str) -> dict[str, Any]:
    """A prompt-completion row in TRL's format."""
    answer = template.replace("{answer}", prompt.answer)
    if prompt.messages is None:
        return {"prompt": prompt.prompt, "completion": answer}
    *earlier, last = [dict(m) for m in prompt.messages]
    begun = prompt.continued
    row = {
        "prompt": [*earlier, last] if begun is None else earlier,
        "completion": [{"role": "assistant", "content": f"{begun or ''}{answer}"}],
    }
    return {**row, "tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else row


def _progress_callback(progress: Callable[[int, int], None], total: int) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress(int(state.global_step), total)

    return Steps()
