"""The configuration of a run: one YAML file, typed, validated, without inert options.

`sections` says what can be set, `loading` reads it, `explaining` says what is wrong with it.
Loading a config imports no torch.
"""

from cropi.config.loading import (
    build_section,
    check_files,
    load_config,
    presets,
    to_yaml,
    validate,
)
from cropi.config.sections import (
    EXECUTION_ONLY,
    ClipConfig,
    EvaluationConfig,
    InfluenceConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    PromptSource,
    RewardTerm,
    RolloutsConfig,
    RunConfig,
    Section,
    SelectionConfig,
    TargetMemory,
    TrainingConfig,
    VerifiersConfig,
    WarmupConfig,
    arm_name,
    flat,
)

__all__ = [
    "EXECUTION_ONLY",
    "ClipConfig",
    "EvaluationConfig",
    "InfluenceConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PromptSource",
    "PromptsConfig",
    "RewardTerm",
    "RolloutsConfig",
    "RunConfig",
    "Section",
    "SelectionConfig",
    "TargetMemory",
    "TrainingConfig",
    "VerifiersConfig",
    "WarmupConfig",
    "arm_name",
    "build_section",
    "check_files",
    "flat",
    "load_config",
    "presets",
    "to_yaml",
    "validate",
]
