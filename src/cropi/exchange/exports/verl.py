"""verl: rows of its `RLHFDataset`, and a reward function in its signature."""

from __future__ import annotations

from typing import ClassVar

from cropi.exchange.exports.trainer_format import (
    REWARD_FILE,
    Place,
    Row,
    Start,
    as_messages,
    columns,
    final_answer_of,
    nested_object,
)
from cropi.plugins import plugin
from cropi.schema import Prompt

REWARDS = '''\
"""The reward function of the prompts beside this file, for verl."""

from pathlib import Path

from cropi.exchange.reward_functions import FolderRewards

compute_score = FolderRewards(Path(__file__).parent).verl
'''


@plugin("export", "verl")
class Verl:
    """Parquet files for verl's RLHFDataset."""

    suffix = ".parquet"
    read_in = "verl 0.9.1"
    chats = True
    files: ClassVar[dict[str, str]] = {REWARD_FILE: REWARDS}

    def row(self, prompt: Prompt, place: Place) -> Row:
        """verl's columns; text is one user message, because verl applies the chat template."""
        info, given = nested_object(prompt, "extra_info"), nested_object(prompt, "reward_model")
        return columns(
            prompt,
            place,
            data_source=prompt.extra.get("data_source", prompt.source),
            prompt=as_messages(prompt),
            ability=prompt.extra.get("ability", prompt.source),
            reward_model={"style": "rule", "ground_truth": final_answer_of(prompt), **given},
            extra_info={"index": place.index, **info, "prompt_id": prompt.prompt_id},
        )

    def command(self, start: Start) -> str:
        """The trainer on the selection, in its order."""
        data = start.path("selection.parquet")
        return " \\\n  ".join(
            [
                "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo",
                f"data.train_files={data} data.shuffle=False",
                f"data.train_batch_size={start.batch(256)}",
                f"data.val_files={data} trainer.val_before_train=False trainer.test_freq=-1",
                f"reward.custom_reward_function.path={start.path(REWARD_FILE)}",
                "reward.custom_reward_function.name=compute_score",
                f"actor_rollout_ref.model.path={start.policy} actor_rollout_ref.rollout.n=8",
                "actor_rollout_ref.rollout.name=vllm trainer.logger='[\"console\"]'",
            ]
        )
