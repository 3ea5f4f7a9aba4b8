"""What the groups of a running TRL training were rewarded, for the stages that follow.

Strategies that remember pass rates, the default among them, ask what training's own groups say: a
prompt that is solved by now has no gradient.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cropi.store.files import read_partial_jsonl, strict_json

REWARDS_OF_FUNCTIONS = "_calculate_rewards"
"""The trainer's method that returns the rewards [responses, functions] of all processes."""


class TrainedGroup(NamedTuple):
    """A prompt, and the rewards [K] of those of its responses that could be judged."""

    prompt_id: str
    rewards: NDArray[np.float64]


class TrainedGroups:
    """The rewards of every group that a trainer samples, in a file that a continued run reads.

    A line has a batch of responses. A training that continues from a checkpoint samples the batches
    after it again: of a batch the last line counts, and `before` says which batches do.

    Args:
        file: JSON lines, written by the first process.
        prompts_of: the prompt ids of a batch, by its number.
    """

    def __init__(self, file: Path, prompts_of: Callable[[int], Sequence[str]]) -> None:
        self.file, self.prompts_of = file, prompts_of
        self._next: int | None = None

    def watch(self, trainer: Any, batch_at: Callable[[int], int]) -> None:
        """Read the rewards of all batches from now on.

        `batch_at` is the number of the batch that the first step of this process begins.
        """
        compute = getattr(trainer, REWARDS_OF_FUNCTIONS, None)
        if compute is None:
            warnings.warn(
                f"this TRL has no GRPOTrainer.{REWARDS_OF_FUNCTIONS}, so that stages are selected "
                "without what training's groups were rewarded",
                stacklevel=3,
            )
            return

        def compute_and_read(*args: Any, **more: Any) -> Any:
            rewards = compute(*args, **more)
            if trainer.model.training:  # the others are an evaluation's
                if self._next is None:
                    self._next = batch_at(int(trainer.state.global_step))
                if trainer.accelerator.is_main_process:
                    weighted = rewards.double().cpu().numpy() * trainer.reward_weights.tolist()
                    self._write(self._next, weighted)
                self._next += 1
            return rewards

        setattr(trainer, REWARDS_OF_FUNCTIONS, compute_and_read)

    def _write(self, batch: int, rewards: NDArray[np.float64]) -> None:
        """Add the line of a batch: each response's sum [K] of what functions said of it."""
        unjudged = np.isnan(rewards).all(axis=1)
        sums = np.where(unjudged, np.nan, np.nansum(rewards, axis=1))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(strict_json({"batch": batch, "rewards": sums.tolist()})) + "\n")

    def before(self, batch: int) -> dict[int, list[TrainedGroup]]:
        """The groups of all batches before this one, by the batch's number, in order."""
        rows, _ = read_partial_jsonl(self.file)
        rewards = {row["batch"]: row["rewards"] for row in rows if row["batch"] < batch}
        return {number: self._groups(number, rewards[number]) for number in sorted(rewards)}

    def _groups(self, batch: int, rewards: Sequence[float | None]) -> list[TrainedGroup]:
        prompt_ids = self.prompts_of(batch)
        values = np.array(rewards, dtype=np.float64).reshape(len(prompt_ids), -1)
        return [
            TrainedGroup(prompt_id, row[np.isfinite(row)])
            for prompt_id, row in zip(prompt_ids, values, strict=True)
        ]
