"""OpenRLHF: JSONL with `input` and `label`, and a reward function in its signature."""

from __future__ import annotations

from typing import ClassVar

from cropi.exchange.exports.trainer_format import (
    REWARD_FILE,
    Place,
    Row,
    Start,
    columns,
    final_answer_of,
    text_or_messages,
)
from cropi.plugins import plugin
from cropi.schema import Prompt

REWARDS = '''\
"""The reward function of the prompts beside this file, for OpenRLHF: labels are prompt ids."""

from pathlib import Path

from cropi.exchange.reward_functions import FolderRewards

reward_func = FolderRewards(Path(__file__).parent).openrlhf
'''


@plugin("export", "openrlhf")
class OpenRlhf:
    """JSONL files for OpenRLHF's PromptDataset."""

    suffix = ".jsonl"
    read_in = "OpenRLHF at 3c3be62 (August 2026)"
    chats = False
    files: ClassVar[dict[str, str]] = {REWARD_FILE: REWARDS}

    def row(self, prompt: Prompt, place: Place) -> Row:
        """`input` as text or messages, `label` the answer, `datasource` the source."""
        return columns(
            prompt,
            place,
            input=text_or_messages(prompt),
            label=final_answer_of(prompt),
            datasource=prompt.source,
        )

    def command(self, start: Start) -> str:
        """GRPO on the selection. Its label is the prompt's id, by which our rewards find it."""
        template = " --data.apply_chat_template" if start.chat else ""
        batch = start.batch(128)
        return " \\\n  ".join(
            [
                "python -m openrlhf.cli.train_ppo_ray",
                f"--actor.model_name_or_path {start.policy}",
                f"--data.prompt_dataset {start.path('selection.jsonl')}",
                f"--data.input_key input --data.label_key prompt_id{template}",
                f"--reward.remote_url {start.path(REWARD_FILE)}",
                "--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 8",
                f"--rollout.batch_size {batch} --train.batch_size {8 * batch}",
            ]
        )
