"""Supervised steps on the answers' format, with TRL's SFTTrainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropi.policy.loading import (
    Policy,
    quiet_libraries,
    reraise_out_of_memory,
    resolve_device,
)
from cropi.progress import ProgressCallback
from cropi.schema import Prompt
from cropi.training.settings import WarmupConfig


def warm_up(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: WarmupConfig,
    work: Path,
    seed: int,
    progress: ProgressCallback | None = None,
    bf16: bool | None = None,
) -> tuple[Any, int]:
    """Take the steps, with the loss on the answers only.

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


def _progress_callback(progress: ProgressCallback, total: int) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress(int(state.global_step), total)

    return Steps()
