"""Settings of training: the warm-up, one GRPO stage, and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cropi.plugins import Choice
from cropi.policy.settings import ModelConfig
from cropi.prompts.settings import PromptSource
from cropi.settings import Count, PathText, Section, Temperature, is_default


class LoraConfig(Section):
    """Low-rank adapters through PEFT instead of full training."""

    r: Count = Field(16, description="rank of the adapters")
    alpha: Count = Field(32, description="scale of the adapters is alpha / r")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout of the adapters' inputs"
    )
    target_modules: str | list[str] = Field("all-linear", description="modules that get adapters")


class TrainerSettings(Section):
    """What the settings of every built-in training engine say about it.

    `execution` names the settings that say where and how fast, but not what is trained.
    """

    execution: ClassVar[frozenset[str]] = frozenset()

    @property
    def devices(self) -> int:
        """How many devices train together."""
        return 1

    def refusals(
        self, training: TrainingConfig, model: ModelConfig, dynamic_sampling: bool
    ) -> list[str]:
        """Why they do not go with the other settings, whatever machine trains: a sentence each."""
        del training, model, dynamic_sampling
        return []


class LaunchSettings(Section):
    """A stage in several processes, started by `accelerate launch`."""

    processes: Annotated[int, Field(ge=2, le=1_024)] = Field(
        description="processes that train together, one for each GPU"
    )
    config: PathText | None = Field(
        None, description="a config of `accelerate config`: DDP, FSDP or DeepSpeed; default: DDP"
    )


class WarmupConfig(Section):
    """Supervised steps on the answers' format before anything is measured."""

    steps: Annotated[int, Field(ge=0)] = Field(0, description="optimizer steps; 0: no warm-up")
    batch_size: Count = Field(16, description="prompts per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-5, description="learning rate of the warm-up"
    )
    prompts: list[PromptSource] = Field(
        default_factory=list, description="prompts whose answers are imitated; default: the pool"
    )
    template: str = Field("{answer}", description="the text that is imitated; {answer} is replaced")

    @model_validator(mode="after")
    def _nothing_inert(self) -> WarmupConfig:
        keys = [key for key in type(self).model_fields if not is_default(self, key)]
        if keys and self.steps == 0:
            raise ValueError(
                f"{', '.join(keys)}: without steps there is no warm-up; set warmup.steps, or "
                "remove these (warmup={} removes all)"
            )
        if "{answer}" not in self.template:
            raise ValueError(f"template {self.template!r} lacks '{{answer}}'; add it")
        return self


class TrainerChoice(Choice):
    """What trains the policy, with its settings."""

    kind: ClassVar[str] = "trainer"
    default: ClassVar[str] = "trl"

    @property
    def grpo(self) -> Mapping[str, Any]:
        """What is passed to TRL's GRPOConfig; empty for an engine that is not TRL's."""
        return getattr(self.settings, "grpo", {})

    @property
    def progress_title(self) -> str:
        """What a run's progress calls its work."""
        return f"{self.slug} training"

    @property
    def devices(self) -> int:
        """How many devices train together; 1 for an engine that does not say."""
        return int(getattr(self.settings, "devices", 1))


class TrainingConfig(Section):
    """GRPO, one stage at a time."""

    engine: TrainerChoice = Field(
        default_factory=TrainerChoice.of, description="what trains the policy"
    )
    prompts_per_step: Count = Field(16, description="prompts per optimizer step")
    responses: Annotated[int, Field(ge=2)] = Field(8, description="responses per prompt of a step")
    max_new_tokens: Count | None = Field(
        None, description="longest response; default: as the rollouts"
    )
    temperature: Temperature | None = Field(
        None, description="sampling temperature; default: as the rollouts"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-6, description="learning rate of AdamW")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="dtype of the trained weights; bf16 loses small updates"
    )
    dynamic_sampling: bool = Field(
        False, description="replace groups whose rewards are all equal before a step (DAPO)"
    )
    lora: LoraConfig | None = Field(
        None, description="train low-rank adapters; default: all weights"
    )

    @property
    def step_responses(self) -> int:
        """Responses that a step trains on."""
        return self.prompts_per_step * self.responses
