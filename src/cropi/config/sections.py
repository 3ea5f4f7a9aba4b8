"""Every setting, with its type, default and limits.

Where a section mirrors the method, its description cites the paper (arXiv 2510.26491) or the
variant it stands for. Errors name the key, the value and the mend.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cropi.schema import Sampling

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


EXECUTION_ONLY = frozenset(
    {
        "model.device",
        "verifiers.timeout",
        "verifiers.workers",
        "influence.batch_tokens",
        "influence.gradient_checkpointing",
        "training.grpo.per_device_train_batch_size",
        "training.grpo.gradient_checkpointing",
        "training.keep",
    }
)
"""Settings that say where and how fast, but not what: a run may go on with others."""


def affects_results(key: str) -> bool:
    """Whether the setting of this dotted key decides results, so that a run must keep it."""
    return key not in EXECUTION_ONLY and not key.startswith("compare.")


class Section(BaseModel):
    """A part of the config: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


SectionType = TypeVar("SectionType", bound=Section)


class ModelConfig(Section):
    """Which policy to start from."""

    path: str = Field(
        description="a Hugging Face hub id, a model directory, `pocket` or `smollm2`",
    )
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    trust_remote_code: bool = False


class PromptSource(Section):
    """Where some prompts come from: exactly one of `path`, `hub`, `reasoning_gym`, `pocket`."""

    path: str | None = Field(None, description="a .jsonl, .json or .parquet file")
    hub: str | None = Field(None, description="a dataset on the Hugging Face hub")
    subset: str | None = Field(None, description="the hub dataset's configuration name")
    split: str = Field("train", description="the hub dataset's split, or pocket's")
    reasoning_gym: str | None = Field(None, description="the name of a reasoning-gym task")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of the reasoning-gym task"
    )
    pocket: list[str] | None = Field(None, description="pocket skills; [all] for every one")
    levels: list[str] | None = Field(
        None, description="levels of these pocket skills, such as 'length 4'; default: all"
    )
    prompt: str | None = Field(None, description="the column with the question, if not recognised")
    answer: str | None = Field(None, description="the column with the answer, if not recognised")
    answer_regex: str | None = Field(
        None, description="its first group is the answer, e.g. '#### (.+)' for GSM8K"
    )
    template: str | None = Field(
        None, description="text around the question: '{prompt}' stands for it"
    )
    system: str | None = Field(None, description="a system message; makes the prompt a chat")
    chat: bool | None = Field(None, description="true: text questions become one user message")
    source: str | None = Field(None, description="the name that picks the verifier")
    limit: Count | None = Field(None, description="keep this many rows, drawn with the run's seed")
    size: Count | None = Field(
        None, description="rows to generate (reasoning-gym; pocket: a skill)"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> PromptSource:
        origins = [k for k in ("path", "hub", "reasoning_gym", "pocket") if getattr(self, k)]
        if len(origins) != 1:
            found = " and ".join(origins) or "none"
            raise ValueError(
                f"a prompt source needs one of path, hub, reasoning_gym, pocket; got {found}"
            )
        self._require_meant(origins[0])
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"template {self.template!r} lacks '{{prompt}}'; add it")
        return self

    def _require_meant(self, origin: str) -> None:
        """Raise ValueError for a key that this kind of source would ignore."""
        meant = {
            "subset": {"hub"},
            "split": {"hub", "pocket"},
            "levels": {"pocket"},
            "options": {"reasoning_gym"},
            "size": {"reasoning_gym", "pocket"},
        }
        for key, origins in meant.items():
            changed = getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            )
            if changed and origin not in origins:
                raise ValueError(
                    f"{key} means nothing for a source of kind {origin}, only for "
                    f"{' and '.join(sorted(origins))}; remove it"
                )


class PromptsConfig(Section):
    """The pool, the validation sets that steer, and the test sets that judge."""

    pool: list[PromptSource] = Field(min_length=1)
    validation: dict[str, list[PromptSource]] = Field(default_factory=dict)
    test: dict[str, list[PromptSource]] = Field(
        default_factory=dict,
        description="sets that are evaluated; without any, the validation sets are",
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="prompts over max_tokens stop the run, or are dropped and counted"
    )
    max_tokens: Count | None = Field(
        None, description="tokens a prompt may have; default: context minus new tokens"
    )
    overlap: Literal["remove", "keep", "error"] = Field(
        "remove", description="pool prompts whose text stands in validation or test"
    )
    limit: Count | None = Field(
        None, description="keep this many prompts of every set, drawn with the seed: a trial run"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class RewardTerm(Section):
    """One reward function of a weighted sum."""

    function: str
    weight: float = 1.0


class VerifiersConfig(Section):
    """Who judges a response: by `source`, first matching pattern, else `default`."""

    default: str | list[RewardTerm] = Field(
        "math",
        description="math, exact, numeric, choice, reasoning_gym, file.py:name or a dotted path",
    )
    sources: dict[str, str | list[RewardTerm]] = Field(
        default_factory=dict, description="source pattern (* and ? allowed) -> verifier"
    )
    timeout: Annotated[float, Field(gt=0)] = Field(10.0, description="seconds for one response")
    workers: Count = 1
    threshold: float | None = Field(
        None,
        description="a response passes at this reward or above; default: graded (the mean reward)",
    )


class RolloutsConfig(Section):
    """How the behaviour policy is sampled, once."""

    engine: str = Field("transformers", description="transformers, or package.module:object")
    responses: Annotated[int, Field(ge=2)] = 8
    validation_responses: Annotated[int, Field(ge=2)] | None = Field(
        None, description="responses for a validation prompt; default: as `responses`"
    )
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Fraction = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: Count = 512
    batch_size: Count = Field(256, description="responses generated at once")
    refresh: Literal["never", "validation", "stale", "all"] = Field(
        "never",
        description="sampled again from the current policy before every later stage: nothing "
        "(paper), validation sets, those and the pool's stale prompts, everything",
    )

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of a rollout."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)


class ClipConfig(Section):
    """PPO's clip range around ratio 1."""

    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    high: Annotated[float, Field(gt=0)] = 0.2


class ObjectiveConfig(Section):
    """The off-policy objective whose gradient is the influence (docs/method.md)."""

    ratio: Literal["token", "sequence", "none"] = Field(
        "token", description="token (paper), sequence (GSPO) or none (REINFORCE)"
    )
    clip: ClipConfig | None = Field(None, description="PPO's clipped minimum; default: no clipping")
    normalisation: Literal["sequence", "token", "constant"] = Field(
        "sequence",
        description="mean a response (GRPO), a group's tokens (DAPO), constant (Dr.GRPO)",
    )
    constant_length: Count | None = Field(
        None, description="the divisor of `constant`; default: the rollouts' max_new_tokens"
    )
    scale_by_std: bool = Field(True, description="divide advantages by the group's std")
    self_normalised: bool = Field(
        False, description="mean and std of the rewards weighted by the sequence ratio"
    )

    @model_validator(mode="after")
    def _nothing_inert(self) -> ObjectiveConfig:
        if self.clip is not None and self.ratio == "none":
            raise ValueError(
                "clip needs a ratio to clip; set ratio to token or sequence, or drop it"
            )
        if self.constant_length is not None and self.normalisation != "constant":
            raise ValueError(
                f"constant_length {self.constant_length} has no effect with normalisation "
                f"{self.normalisation!r}; set normalisation to constant, or drop it"
            )
        return self

    def with_length(self, length: int) -> ObjectiveConfig:
        """The same, dividing by `length` tokens where a constant is asked for and none is set."""
        if self.normalisation != "constant" or self.constant_length:
            return self
        return self.model_copy(update={"constant_length": length})


METHODS = ("exact", "adaptive", "sparse", "factorised", "kronecker", "windowed")
TargetMemory = Literal["fp32", "bf16", "offload"]


class InfluenceConfig(Section):
    """How gradients are compared with the validation direction."""

    method: str = Field(
        "exact",
        description="exact, or a sketch: adaptive, sparse (the paper's), factorised, kronecker, "
        "windowed or package.module:object",
    )
    sparse_ratio: Fraction = Field(
        0.15, description="share of coordinates kept (sparse, factorised)"
    )
    projection: Literal["hash", "rademacher", "gaussian"] = Field(
        "hash", description="what follows the mask (sparse)"
    )
    dim: Count = Field(8192, description="dimensions of the sketch")
    target: Literal["mean", "unit_mean"] = Field(
        "mean", description="mean of the gradients (paper), or of the unit gradients"
    )
    parameters: list[str] | None = Field(
        None,
        description="patterns of parameter names to compare, such as model.layers.*; default: all",
    )
    precondition: Literal["none", "adam"] = Field(
        "none",
        description="weigh target directions as the policy's saved Adam state weighs steps",
    )
    target_memory: TargetMemory = Field(
        "fp32", description="where target directions are held (exact): fp32, bf16 or offload"
    )
    batch_tokens: Count | None = Field(
        None,
        description="padded tokens in one forward pass; default: 16384 on a GPU, 4096 on a CPU",
    )
    share_prefix: bool = Field(True, description="compute a prompt once for all its responses")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in backward: a quarter slower, far less memory"
    )
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig())

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS and ":" not in method:
            allowed = ", ".join(METHODS)
            raise ValueError(
                f"{method!r} is no method; allowed: {allowed}, and your own package.module:object"
            )
        return method


class SelectionConfig(Section):
    """Which prompts a stage trains on."""

    strategy: str = Field(
        "cropi",
        description="cropi, influence, gradalign, learnalign, learnability, pass_rate, random, "
        "full, dapo, oracle or a dotted path",
    )
    ratio: Fraction = Field(0.1, description="share of the whole pool")
    fusion_constant: Annotated[float, Field(ge=0)] = Field(
        0.0, description="c in 1/(c + rank); 0 in the paper"
    )
    noise_floor: Annotated[float, Field(ge=0)] = Field(
        3.0,
        description="leave out prompts whose influence is within this many standard deviations of "
        "noise, down to a fifth of the ratio; 0 (paper) fills the ratio",
    )
    memory: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="weight of earlier stages' influence in a running mean; 0 (paper): none",
    )


class LoraConfig(Section):
    """Low-rank adapters through PEFT instead of full training."""

    r: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class WarmupConfig(Section):
    """Supervised steps on the answers' format before anything is measured."""

    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    prompts: list[PromptSource] = Field(
        default_factory=list, description="prompts to imitate the answers of; default: the pool"
    )
    template: str = Field("{answer}", description="what the model should say")


class TrainingConfig(Section):
    """GRPO, one stage at a time."""

    engine: str = Field("trl", description="trl, or package.module:object")
    stages: Count = 4
    steps_per_stage: Count = 60
    prompts_per_step: Count = 16
    generations: Annotated[int, Field(ge=2)] = 8
    max_new_tokens: Count | None = Field(None, description="default: as the rollouts")
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="default: as the rollouts"
    )
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of the trained weights; bf16 weights lose small updates"
    )
    grpo: dict[str, Any] = Field(
        default_factory=dict, description="anything else for TRL's GRPOConfig"
    )
    dynamic_sampling: bool = Field(
        False, description="replace groups whose rewards are all equal before a step (DAPO)"
    )
    keep: Literal["all", "last"] = Field(
        "all", description="checkpoints to keep: every stage's, or the last one's weights alone"
    )
    lora: LoraConfig | None = None


class EvaluationConfig(Section):
    """When and how accuracy is measured."""

    every: Count = Field(30, description="steps between evaluations")
    samples: Count = Field(1, description="responses a prompt; 1 with temperature 0 is greedy")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Fraction = 1.0
    k: list[Count] = Field(default_factory=lambda: [1], description="the k of pass@k")
    max_new_tokens: Count | None = Field(None, description="default: as the rollouts")
    targeted: list[str] | None = Field(
        None,
        description="test sets that count as targeted; default: those named as a validation set",
    )

    @model_validator(mode="after")
    def _samples_suffice(self) -> EvaluationConfig:
        if max(self.k) > self.samples:
            raise ValueError(
                f"pass@{max(self.k)} needs samples >= {max(self.k)}, got samples {self.samples}"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} greedy samples are all alike; set evaluation.temperature above 0"
            )
        return self


class CompareConfig(Section):
    """What `cropi compare` trains, and against what."""

    strategies: list[str] = Field(
        default_factory=list,
        description="strategies and variants; default: selection.strategy and the baselines",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0, 1, 2])
    baseline: str = Field("full", description="the strategy that the others are held against")
    threads: Count | None = Field(
        None,
        description="CPU threads of a cell, which decide last bits; default: OMP_NUM_THREADS, or "
        "the cores shared by the jobs that a study begins with",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="name -> dotted settings, e.g. wider: {selection.ratio: 0.25}",
    )


class RunConfig(Section):
    """Everything a run needs."""

    name: str = Field("run", pattern=r"^\w[\w.-]*$")
    out: str = Field("runs", description="the run directory is out/name")
    seed: Annotated[int, Field(ge=0)] = 0
    data_seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="draws prompts and the warm-up, which runs compared must share; as seed"
    )
    model: ModelConfig
    prompts: PromptsConfig
    verifiers: VerifiersConfig = Field(default_factory=lambda: VerifiersConfig())
    warmup: WarmupConfig = Field(default_factory=lambda: WarmupConfig())
    rollouts: RolloutsConfig = Field(default_factory=lambda: RolloutsConfig())
    influence: InfluenceConfig = Field(default_factory=lambda: InfluenceConfig())
    selection: SelectionConfig = Field(default_factory=lambda: SelectionConfig())
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig())
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig())
    baselines: list[str] = Field(
        default_factory=list, description="strategies trained beside it for comparison, e.g. [full]"
    )
    compare: CompareConfig = Field(default_factory=lambda: CompareConfig())

    @property
    def directory(self) -> Path:
        """Where the run lives."""
        return Path(self.out).expanduser() / self.name

    @property
    def strategies(self) -> list[str]:
        """The run's arms: the strategy, then its baselines."""
        return [self.selection.strategy, *self.baselines]

    def result_settings(self, section: str) -> dict[str, Any]:
        """The settings of a section that decide results, as dotted keys."""
        settings = flat(getattr(self, section).model_dump(), section)
        return {key: value for key, value in settings.items() if affects_results(key)}

    @property
    def max_response_tokens(self) -> int:
        """The longest response that rollouts, training or evaluation may sample."""
        wanted = (self.training.max_new_tokens, self.evaluation.max_new_tokens)
        return max(self.rollouts.max_new_tokens, *(n or 0 for n in wanted))

    @property
    def targeted(self) -> list[str]:
        """The evaluated sets that the validation sets aim at."""
        if self.evaluation.targeted is not None:
            return self.evaluation.targeted
        evaluated = self.prompts.test or self.prompts.validation
        return [name for name in evaluated if name in self.prompts.validation]

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        evaluated = self.prompts.test or self.prompts.validation
        if unknown := sorted(set(self.evaluation.targeted or ()) - set(evaluated)):
            raise ValueError(
                f"evaluation.targeted names {unknown}, which is not evaluated; the evaluated "
                f"sets are {sorted(evaluated)}"
            )
        arms = [strategy_slug(name) for name in self.strategies]
        if len(set(arms)) < len(arms):
            twice = next(name for name in self.baselines if arms.count(strategy_slug(name)) > 1)
            raise ValueError(
                f"baselines {self.baselines} beside selection.strategy {self.selection.strategy!r} "
                f"name {twice!r} twice; name every strategy once"
            )
        needs_target = {"cropi", "influence", "gradalign", "oracle"} & set(self.strategies)
        if needs_target and not self.prompts.validation:
            raise ValueError(
                f"strategy {sorted(needs_target)} steers by validation sets, and "
                "prompts.validation is empty; add one, or choose another selection.strategy"
            )
        return self


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def strategy_slug(strategy: str) -> str:
    """A strategy's name as a folder: dotted paths lose what file systems dislike."""
    return re.sub(r"[^\w-]+", "-", strategy)
