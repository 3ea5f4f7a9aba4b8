"""The training engine `trl`: TRL's GRPOTrainer, in this process or in several that it launches.

Its implementation is `cropi.training.trl_stage`, which loads torch and TRL. This file does not,
because settings are also read where nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cropi.plugins import plugin
from cropi.policy.settings import ModelConfig
from cropi.training.settings import LaunchSettings, TrainerSettings, TrainingConfig

if TYPE_CHECKING:
    from cropi.training.stage import Trainer


class TrlSettings(TrainerSettings):
    """Settings of the training engine `trl`."""

    grpo: dict[str, Any] = Field(
        default_factory=dict, description="anything else for TRL's GRPOConfig"
    )
    launch: LaunchSettings | None = Field(
        None, description="train in several processes; default: in this one"
    )

    @property
    def devices(self) -> int:
        """Every process has its own."""
        return 1 if self.launch is None else self.launch.processes

    def refusals(
        self, training: TrainingConfig, model: ModelConfig, dynamic_sampling: bool
    ) -> list[str]:
        """What a stage in several processes cannot do."""
        del model
        batch = training.step_responses
        problems = []
        if self.launch is not None and dynamic_sampling:
            problems.append(
                "training.engine.launch does not go with dynamic sampling, which samples in one "
                "process; leave one of them out"
            )
        if batch % self.devices:
            problems.append(
                f"training.engine.launch.processes = {self.devices} does not divide a step of "
                f"{batch} completions (prompts_per_step x responses); choose a divisor"
            )
        return problems


@plugin("trainer", "trl", TrlSettings)
def trl(settings: TrlSettings) -> Trainer:
    """GRPO through TRL, one stage per call."""
    if settings.launch is not None:
        from cropi.training.launcher import LaunchedTrainer

        return LaunchedTrainer(settings.grpo, settings.launch)
    from cropi.training.trl_stage import TrlTrainer

    return TrlTrainer(settings.grpo)
