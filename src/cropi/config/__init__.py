"""The configuration of a run: one YAML file, typed, validated, without inert options.

Sections live beside the code that they configure; `run_config` assembles them, `config_file` reads
a file. Loading a config imports no torch unless it names a sketch.
"""

from cropi.config.config_file import (
    build_section,
    check_files,
    load_config,
    presets,
    resolve_model_path,
    to_yaml,
    validate,
    with_settings,
)
from cropi.config.run_config import EXECUTION_ONLY, RunConfig, affects_results
from cropi.curriculum.settings import CurriculumConfig
from cropi.evaluation.settings import EvaluationConfig
from cropi.gradients.settings import ClipConfig, ObjectiveConfig, TargetMemory
from cropi.influence.settings import InfluenceConfig
from cropi.policy.settings import ModelConfig
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.settings import Section, flat
from cropi.sketches.settings import SketchChoice
from cropi.study.settings import CompareConfig
from cropi.training.settings import LoraConfig, TrainerChoice, TrainingConfig, WarmupConfig
from cropi.verifiers.settings import RewardTerm, VerifiersConfig

__all__ = [
    "EXECUTION_ONLY",
    "ClipConfig",
    "CompareConfig",
    "CurriculumConfig",
    "EngineChoice",
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
    "SketchChoice",
    "StrategyChoice",
    "TargetMemory",
    "TrainerChoice",
    "TrainingConfig",
    "VerifiersConfig",
    "WarmupConfig",
    "affects_results",
    "build_section",
    "check_files",
    "flat",
    "load_config",
    "presets",
    "resolve_model_path",
    "to_yaml",
    "validate",
    "with_settings",
]
