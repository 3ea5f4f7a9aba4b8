"""GRPO of a tiny model with guided stages.

`guided_training.py OUT MODEL` trains in two processes, and writes what each of them trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cropi.integrations.trl import Guidance
from cropi.pocket import rows
from cropi.schema import Selection
from cropi.selection import SelectionContext
from cropi.selection.history_baselines import Mopps
from cropi.selection.settings import SelectionConfig, StrategyChoice
from support.tiny_runs import untrained

STEPS, STAGE, PROMPTS = 6, 2, 4
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False}


def data(split: str, skills: list[str], size: int) -> Dataset:
    return Dataset.from_list(
        [{"prompt": r["prompt"], "skill": r["source"]} for r in rows(split, skills, size, 0)]
    )


class Remembering(Mopps):
    """MoPPS, with how many responses to the pool each round of its history has, by stage."""

    rounds: ClassVar[dict[int, list[int]]] = {}

    def select(self, context: SelectionContext) -> Selection:
        assert context.history is not None
        self.rounds[context.stage] = context.history.responses.sum(axis=1).tolist()
        return super().select(context)


class Guided:
    """A trainer with guidance, and the prompts that its reward function saw by step."""

    def __init__(self, out: Path, model: str = "", processes: int = 1, **guided: Any) -> None:
        self.seen: list[tuple[int, list[str]]] = []
        self.rewarded: list[tuple[str, list[float]]] = []
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
        paper = SelectionConfig(strategy=StrategyChoice.of("ranking", noise_floor=0), ratio=0.2)
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
        rewards = [float(sum(ids) % 2) for ids in completion_ids]
        if len(prompts) > self.batch:
            self.sampled += len(prompts)
            return rewards
        self.seen.append((int(more["trainer_state"].global_step), prompts[::2]))
        pairs = zip(rewards[::2], rewards[1::2], strict=True)
        self.rewarded += [(p, list(pair)) for p, pair in zip(prompts[::2], pairs, strict=True)]
        return rewards

    def weights(self) -> dict[str, torch.Tensor]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: value.clone() for name, value in model.state_dict().items()}


def main(out: Path, model: str) -> None:
    guided = Guided(out, model, processes=2)
    guided.trainer.train()
    total = sum(float(value.double().sum()) for value in guided.weights().values())
    rank = guided.trainer.accelerator.process_index
    result = {"seen": guided.seen, "weights": total, "sampled": guided.sampled}
    result["rewarded"] = guided.rewarded
    (out / f"process-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
