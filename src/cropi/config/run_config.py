"""The settings of a run, assembled from the sections that live beside the code they configure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cropi.curriculum.settings import CurriculumConfig
from cropi.evaluation.settings import EvaluationConfig
from cropi.execution.settings import ScaleConfig
from cropi.influence.settings import InfluenceConfig
from cropi.plugins import Choice, code_of, find_plugin, plugin_names, settings_of
from cropi.policy.settings import ModelConfig
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.rollouts.settings import RolloutsConfig
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.selection.strategy import Needs, find_strategy, needs_of
from cropi.settings import PathText, Section, flat, is_default
from cropi.store.mirror import working_directory
from cropi.study.settings import CompareConfig
from cropi.text import remote_url, require_name, shown
from cropi.training.settings import TrainerSettings, TrainingConfig, WarmupConfig
from cropi.verifiers.settings import VerifiersConfig

EXECUTION_ONLY = frozenset(
    {
        "model.device",
        "verifiers.timeout",
        "verifiers.memory_gb",
        "verifiers.workers",
        "influence.batch_tokens",
        "influence.gradient_checkpointing",
        "training.engine.grpo.per_device_train_batch_size",
        "training.engine.grpo.gradient_checkpointing",
        "curriculum.keep_checkpoints",
        "report_to",
    }
)
"""Settings that say where and how fast, but not what: a run may continue with others."""
ENGINES = {
    "rollouts.engine.": "engine",
    "evaluation.engine.": "engine",
    "training.engine.": "trainer",
}
"""Where settings of engines begin; an engine says itself which of them are of that kind."""


def affects_results(key: str) -> bool:
    """Whether the setting of this dotted key decides results, so that a run must keep it."""
    kind = next((ENGINES[start] for start in ENGINES if key.startswith(start)), None)
    if kind is not None and key.split(".")[2] in _execution_of(kind):
        return False
    return key not in EXECUTION_ONLY and not key.startswith(("compare.", "scale."))


@cache
def _execution_of(kind: str) -> frozenset[str]:
    """The settings of all built-in engines of a kind that say where and how fast."""
    settings = [settings_of(find_plugin(kind, name)) for name in plugin_names(kind)]
    return frozenset[str]().union(*(getattr(each, "execution", ()) for each in settings))


def _plugins_in(values: Any, key: str = "") -> Iterator[tuple[str, Choice]]:
    """Each plug-in in some settings, with its dotted key."""
    if isinstance(values, Choice):
        yield key, values
    elif isinstance(values, Section):
        values = {name: getattr(values, name) for name in type(values).model_fields}
    elif isinstance(values, list):
        values = dict(enumerate(values))
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _plugins_in(value, f"{key}.{name}" if key else str(name))


class RunConfig(Section):
    """Everything a run needs."""

    name: str = Field(
        "run",
        pattern=r"^\w[\w.-]*$",
        description="the run's name: letters, digits, _, and after the first also . and -",
    )
    out: PathText = Field(
        "runs", description="the run directory is out/name; may be a URL, s3://bucket/runs"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="all random numbers derive from it")
    data_seed: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="seed of the prompts and the warm-up, which compared runs share; default: seed",
    )
    model: ModelConfig
    prompts: PromptsConfig
    verifiers: VerifiersConfig = Field(default_factory=VerifiersConfig)
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    rollouts: RolloutsConfig = Field(default_factory=RolloutsConfig)
    influence: InfluenceConfig = Field(default_factory=InfluenceConfig)
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    baselines: list[StrategyChoice] = Field(
        default_factory=list, description="strategies to train too, for comparison, e.g. [full]"
    )
    compare: CompareConfig = Field(default_factory=CompareConfig)
    scale: ScaleConfig = Field(default_factory=ScaleConfig)
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default_factory=list,
        description="services that get the metrics, each strategy as one run over all stages",
    )

    @property
    def directory(self) -> Path:
        """Where the run lives on this machine."""
        return working_directory(self.out) / self.name

    @property
    def url(self) -> str | None:
        """Where the run is kept, if that is not on this machine."""
        out = remote_url(self.out)
        return f"{out.rstrip('/')}/{self.name}" if out else None

    @property
    def strategies(self) -> list[StrategyChoice]:
        """The run's arms: the strategy, then its baselines."""
        return [self.selection.strategy, *self.baselines]

    def result_settings(self, section: str) -> dict[str, Any]:
        """The settings of a section that decide results, as dotted keys."""
        settings = flat(getattr(self, section).model_dump(), section)
        return {key: value for key, value in settings.items() if affects_results(key)}

    @property
    def code(self) -> dict[str, str]:
        """Hashes of the files that define plug-ins of the user's, by setting, but verifiers."""
        hashes = {key: code_of(each.kind, each.name) for key, each in self._plugins()}
        return {key: code for key, code in hashes.items() if code}

    @property
    def code_by_name(self) -> dict[str, str]:
        """The same hashes by the plug-in's resolved name."""
        code = self.code
        return {each.name: code[key] for key, each in self._plugins() if key in code}

    def _plugins(self) -> Iterator[tuple[str, Choice]]:
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return _plugins_in({key: value for key, value in sections.items() if key != "compare"})

    @property
    def longest_response(self) -> tuple[str, int]:
        """The setting of the longest response that may be sampled, and that many tokens."""
        wanted = {
            "rollouts.max_new_tokens": self.rollouts.max_new_tokens,
            "training.max_new_tokens": self.training.max_new_tokens or 0,
            "evaluation.max_new_tokens": self.evaluation.max_new_tokens or 0,
        }
        return max(wanted.items(), key=lambda item: item[1])

    @property
    def targeted(self) -> list[str]:
        """The evaluated sets that the validation sets aim at."""
        if self.evaluation.targeted is not None:
            return self.evaluation.targeted
        return [name for name in self.evaluated if name in self.prompts.validation]

    @property
    def remarks(self) -> list[str]:
        """What is as it was asked for, and may not be as it was meant: one sentence each."""
        chosen = self.evaluation.targeted is not None
        if chosen or self.targeted or not self.evaluated:
            return []
        tests, aims = (
            ", ".join(map(shown, sets)) for sets in (self.evaluated, self.prompts.validation)
        )
        others = f"are not named as the validation sets {aims}" if aims else "measure no target"
        return [
            f"no accuracy counts as targeted: the test sets {tests} {others}; name a test set like "
            "the validation set whose skill it measures, or list it in evaluation.targeted"
        ]

    @property
    def evaluated(self) -> dict[str, list[PromptSource]]:
        """The sets whose accuracy is measured: the test sets, or the validation sets."""
        return self.prompts.test or self.prompts.validation

    @field_validator("out")
    @classmethod
    def _can_be_locked(cls, out: str) -> str:
        if (remote_url(out) or "").startswith(("hf:", "http:", "https:")):
            raise ValueError(f"a run cannot be kept on {out}; give s3://, gs:// or a local folder")
        return out

    @field_validator("name")
    @classmethod
    def _name_of_folder(cls, name: str) -> str:
        return require_name(name, "a run")

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        _require_evaluated_targets(self)
        _require_distinct_arms(self)
        _require_validation_sets(self)
        _require_engines(self)
        _require_effects(self)
        return self


def _require_evaluated_targets(config: RunConfig) -> None:
    evaluated = config.evaluated
    if unknown := sorted(set(config.evaluation.targeted or ()) - set(evaluated)):
        raise ValueError(
            f"evaluation.targeted names {unknown}, which is not evaluated; the evaluated "
            f"sets are {sorted(evaluated)}"
        )


def _require_distinct_arms(config: RunConfig) -> None:
    arms = [strategy.slug for strategy in config.strategies]
    for baseline in config.baselines:
        if arms.count(baseline.slug) > 1:
            raise ValueError(
                f"baselines beside selection.strategy {config.selection.strategy.name!r} name "
                f"{baseline.name!r} twice; name every strategy once (compare.variants compares one "
                "strategy under several settings)"
            )


def _require_validation_sets(config: RunConfig) -> None:
    for strategy in config.strategies:
        needs = needs_of(find_strategy(strategy))
        if needs.validation_sets and not config.prompts.validation:
            raise ValueError(
                f"strategy {strategy.name!r} steers by validation sets, and prompts.validation is "
                "empty; add one, or choose another selection.strategy"
            )


def _require_engines(config: RunConfig) -> None:
    """Raise ValueError for an engine that cannot do what the rest of the config asks of it."""
    engine = config.rollouts.engine
    needs = [needs_of(find_strategy(strategy)) for strategy in config.strategies]
    dynamic = config.training.dynamic_sampling or any(each.dynamic_sampling for each in needs)
    if dynamic and engine.policies != "any":
        raise ValueError(
            f"rollouts.engine {engine.name!r} samples from saved policies, and dynamic sampling "
            "asks for the one that is being trained, at every step; use rollouts.engine "
            "transformers, or another strategy"
        )
    trainer = config.training.engine.settings
    if isinstance(trainer, TrainerSettings):
        for problem in trainer.refusals(config.training, config.model, dynamic):
            raise ValueError(problem)
    if engine.policies == "served":
        _require_served(config, needs)
    of_evaluation = config.evaluation.engine or engine
    if config.evaluated and of_evaluation.policies == "served":
        raise ValueError(
            f"engine {of_evaluation.name!r} has one policy, and the accuracy of every trained one "
            "is measured; set evaluation.engine to transformers or vllm"
        )


def _require_served(config: RunConfig, needs: Sequence[Needs]) -> None:
    """Raise ValueError where rollouts of more than the configured model are wanted."""
    if config.warmup.steps or config.training.lora is not None:
        key = "warmup.steps" if config.warmup.steps else "training.lora"
        raise ValueError(
            f"rollouts.engine {config.rollouts.engine.name!r} has one policy, and {key} makes "
            "another one to start from; serve that one and give it as model.path, or use "
            "rollouts.engine vllm"
        )
    if config.curriculum.refresh != "never" or any(each.fresh for each in needs):
        raise ValueError(
            f"rollouts.engine {config.rollouts.engine.name!r} has one policy, and rollouts of the "
            "trained ones are asked for (curriculum.refresh, or the strategy); use rollouts.engine "
            "vllm"
        )


def _require_effects(config: RunConfig) -> None:
    """Raise ValueError for a setting that nothing in this config would read.

    Settings that only some strategies read are allowed with every strategy, because a study
    compares strategies under one config.
    """
    if config.rollouts.validation_responses is not None and not config.prompts.validation:
        raise ValueError(
            f"rollouts.validation_responses {config.rollouts.validation_responses} has no effect "
            "without prompts.validation; add a validation set, or remove it"
        )
    if config.curriculum.refresh != "never" and config.curriculum.stages == 1:
        raise ValueError(
            f"curriculum.refresh {config.curriculum.refresh!r} has no effect with one stage; "
            "rollouts are sampled again before later stages"
        )
    unread = [
        key for key in EvaluationConfig.model_fields if not is_default(config.evaluation, key)
    ]
    if unread and not config.evaluated:
        raise ValueError(
            f"evaluation.{unread[0]} has no effect: there is no test or validation set to "
            "evaluate; add prompts.test, or remove it"
        )
