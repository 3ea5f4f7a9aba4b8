"""The training engine `verl`: its PPO trainer with GRPO advantages, in an interpreter that has it.

Its implementation is `cropi.training.verl_stage`; `verl_config` there makes the keys of its config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cropi.plugins import plugin
from cropi.training.verl_settings import VerlSettings

if TYPE_CHECKING:
    from cropi.training.stage import Trainer


@plugin("trainer", "verl", VerlSettings)
def verl(settings: VerlSettings) -> Trainer:
    """GRPO through verl's main_ppo, on one node or a Ray cluster."""
    from cropi.training.verl_stage import VerlTrainer

    return VerlTrainer(settings)
