"""TRL: a prompt-only data set, a reward function in its signature, and a script that trains."""

from __future__ import annotations

from typing import ClassVar

from cropi.exchange.exports.trainer_format import (
    REWARD_FILE,
    Place,
    Row,
    Start,
    columns,
    text_or_messages,
)
from cropi.plugins import plugin
from cropi.schema import Prompt

REWARDS = '''\
"""The reward function of the prompts beside this file, for TRL's GRPOTrainer."""

from pathlib import Path

from cropi.exchange.reward_functions import FolderRewards

folder = FolderRewards(Path(__file__).parent)


def verifier(*arguments, **columns):
    return folder.trl(*arguments, **columns)
'''
SCRIPT = '''\
"""GRPO with TRL on the prompts beside this file: python train.py POLICY [control] [KEY=VALUE ...]

KEY=VALUE sets anything of TRL's GRPOConfig.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig, GRPOTrainer

from rewards import verifier

HERE = Path(__file__).parent
# TRL assumes a GPU with bfloat16.
MACHINE = {"use_cpu": not torch.accelerator.is_available(), "bf16": is_torch_bf16_gpu_available()}


def value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


policy, *rest = sys.argv[1:]
settings = {key: value(text) for key, _, text in (r.partition("=") for r in rest if "=" in r)}
name = "control" if "control" in rest else "selection"
trainer = GRPOTrainer(
    model=policy,
    reward_funcs=verifier,
    args=GRPOConfig(
        **{"output_dir": f"trained-{name}", "temperature": 1.0, **MACHINE, **settings}
    ),
    train_dataset=load_dataset(
        "parquet", data_files=str(HERE / f"{name}.parquet"), split="train"
    ),
)
trainer.train()
'''


@plugin("export", "trl")
class Trl:
    """Hugging Face data sets for TRL's GRPOTrainer."""

    suffix = ".parquet"
    read_in = "trl 1.16.0"
    chats = False
    files: ClassVar[dict[str, str]] = {REWARD_FILE: REWARDS, "train.py": SCRIPT}

    def row(self, prompt: Prompt, place: Place) -> Row:
        """`prompt` as text or messages; TRL hands all other columns to reward functions."""
        return columns(prompt, place, prompt=text_or_messages(prompt))

    def command(self, start: Start) -> str:
        """The script, run by accelerate."""
        return f"accelerate launch {start.path('train.py')} {start.policy}"
