"""GRPO of a tiny model with guided stages.

`guided_training.py OUT MODEL` trains in two processes, and writes what each of them trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cropi.integrations.trl import Guidance
from cropi.pocket import rows
from cropi.selection.settings import SelectionConfig, StrategyChoice
from support.tiny_runs import untrained

STEPS, STAGE, PROMPTS = 6, 2, 4
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False}


def data(split: str, skills: list[str], size: int) -> Dataset:
    return Dataset.from_list(
        [{"prompt": r["prompt"], "skill": r["source"]} for r in rows(split, skills, size, 0)]
    )


class Guided:
    """A trainer with guidance, and the prompts that its reward function saw by step."""

    def __init__(self, out: Path, model: str = "", processes: int = 1, **guided: Any) -> None:
        self.seen: list[tuple[int, list[str]]] = []
        self.sampled, self.batch = 0, PROMPTS * 2 // processes
        args = GRPOConfig(
            output_dir=str(out),
            max_steps=STEPS,
            per_device_train_batch_size=self.batch,
            num_generations=2,
            max_completion_length=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=1,
            **QUIET,
        )
        pool, target = data("pool", ["sort", "add"], 24), data("validation", ["sort"], 8)
        paper = SelectionConfig(strategy=StrategyChoice.of("cropi", noise_floor=0), ratio=0.2)
        settings = {"selection": paper, **guided}
        self.guidance = Guidance(args, pool, {"sort": target}, STAGE, **settings)
        self.trainer = GRPOTrainer(
            model or untrained(), self.reward, args=args, train_dataset=self.guidance.dataset
        )
        self.guidance.attach(self.trainer)

    def reward(
        self,
        prompts: list[str],
        completion_ids: Sequence[Sequence[int]],
        skill: list[str],
        **more: Any,
    ) -> list[float]:
        """One that a model without skills sometimes gets."""
        if len(prompts) > self.batch:
            self.sampled += len(prompts)
        else:
            self.seen.append((int(more["trainer_state"].global_step), prompts[::2]))
        return [float(sum(ids) % 2) for ids in completion_ids]

    def weights(self) -> dict[str, torch.Tensor]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: value.clone() for name, value in model.state_dict().items()}


def main(out: Path, model: str) -> None:
    guided = Guided(out, model, processes=2)
    guided.trainer.train()
    total = sum(float(value.double().sum()) for value in guided.weights().values())
    rank = guided.trainer.accelerator.process_index
    result = {"seen": guided.seen, "weights": total, "sampled": guided.sampled}
    (out / f"process-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
