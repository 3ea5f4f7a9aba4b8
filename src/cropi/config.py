"""The configuration of a run: one YAML file, typed, validated, without inert options.

Loading a config imports no torch. Every error names the key, the value and the mend. Where a
section mirrors the method, the field's docstring cites DESIGN section 2 or the paper
(arXiv 2510.26491).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cropi.errors import InputError
from cropi.schema import Sampling

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


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
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
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
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"template {self.template!r} lacks '{{prompt}}'; add it")
        return self


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

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of a rollout."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)


class ClipConfig(Section):
    """PPO's clip range around ratio 1."""

    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    high: Annotated[float, Field(gt=0)] = 0.2


class ObjectiveConfig(Section):
    """The off-policy objective whose gradient is the influence (DESIGN section 2)."""

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


class InfluenceConfig(Section):
    """How gradients are compared with the validation direction."""

    method: Literal["exact", "sparse"] = "exact"
    sparse_ratio: Fraction = Field(0.15, description="share of coordinates kept (sparse)")
    dim: Count = Field(8192, description="dimensions of the sketch (sparse)")
    target: Literal["mean", "unit_mean"] = Field(
        "mean", description="mean of the gradients (paper), or of the unit gradients"
    )
    batch_tokens: Count = Field(16384, description="padded tokens in one forward pass")
    share_prefix: bool = Field(True, description="compute a prompt once for all its responses")
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig())


class SelectionConfig(Section):
    """Which prompts a stage trains on."""

    strategy: str = Field(
        "cropi",
        description="cropi, influence, random, pass_rate, learnability, full or a dotted path",
    )
    ratio: Fraction = Field(0.1, description="share of the whole pool")
    fusion_constant: Annotated[float, Field(ge=0)] = Field(
        0.0, description="c in 1/(c + rank); 0 in the paper"
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


class RunConfig(Section):
    """Everything a run needs."""

    name: str = Field("run", pattern=r"^\w[\w.-]*$")
    out: str = Field("runs", description="the run directory is out/name")
    seed: Annotated[int, Field(ge=0)] = 0
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

    @property
    def directory(self) -> Path:
        """Where the run lives."""
        return Path(self.out).expanduser() / self.name

    @property
    def strategies(self) -> list[str]:
        """The run's arms: the strategy, then its baselines."""
        return [self.selection.strategy, *self.baselines]

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
        arms = [arm_name(name) for name in self.strategies]
        if len(set(arms)) < len(arms):
            twice = next(name for name in self.baselines if arms.count(arm_name(name)) > 1)
            raise ValueError(
                f"baselines {self.baselines} beside selection.strategy {self.selection.strategy!r} "
                f"name {twice!r} twice; name every strategy once"
            )
        needs_target = {"cropi", "influence"} & set(self.strategies)
        if needs_target and not self.prompts.validation:
            raise ValueError(
                f"strategy {sorted(needs_target)} steers by validation sets, and "
                "prompts.validation is empty; add one, or choose another selection.strategy"
            )
        return self


def arm_name(strategy: str) -> str:
    """A strategy's name as a folder: dotted paths lose what file systems dislike."""
    return re.sub(r"[^\w-]+", "-", strategy)


def presets() -> list[str]:
    """Return the names of the configs that ship with cropi."""
    folder = resources.files("cropi") / "presets"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a preset by name or a YAML file by path, apply `a.b=c` overrides, and validate.

    Raises InputError naming the key, the value and the mend.
    """
    values = _read_yaml(source)
    for override in overrides:
        _apply(values, override)
    return validate(values, source)


def validate(values: dict[str, Any], origin: str) -> RunConfig:
    """Validate a config given as plain values; `origin` is named in errors."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, origin)) from None


def build_section(
    kind: type[SectionType], values: dict[str, Any], overrides: Sequence[str] = ()
) -> SectionType:
    """Validate one section given as plain values and `a.b=c` overrides.

    Raises InputError naming the key, the value and the mend.
    """
    known = dict(values)
    for override in overrides:
        _apply(known, override)
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise InputError(_explain(error, "settings", kind)) from None


def check_files(config: RunConfig, base: Path | None = None) -> None:
    """Raise InputError for a prompt file that is not there, relative to here or to `base`."""
    sets = config.prompts
    sources = [*sets.pool, *config.warmup.prompts]
    sources += [
        s for named in (sets.validation, sets.test) for found in named.values() for s in found
    ]
    for source in sources:
        if source.path is None:
            continue
        places = [Path(source.path), *([base / source.path] if base else [])]
        if not any(place.is_file() for place in places):
            raise InputError(
                f"prompts file {source.path} does not exist (looked in {Path.cwd()}"
                f"{f' and {base}' if base else ''}); correct the path"
            )


def to_yaml(config: RunConfig) -> str:
    """Render a resolved config; loading the text gives the same config."""
    values = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-6 is a number, as in YAML 1.2 and in everybody's head."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read_yaml(source: str) -> dict[str, Any]:
    path = Path(source)
    if source in presets() and not path.is_file():
        text = (resources.files("cropi") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"config {source} cannot be read as text: {error}") from None
    else:
        raise InputError(
            f"config {source} is no file and no preset; give the path of a YAML file or one of: "
            f"{', '.join(presets())}"
        )
    try:
        values = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"config {source} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"config {source} holds no settings; it needs at least model and prompts")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted override in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} is not of the form key.path=value")
    *parents, leaf = key.split(".")
    node = values
    for depth, name in enumerate(parents):
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            path = ".".join(parents[: depth + 1])
            raise InputError(f"override {override!r}: {path} is a value, not a section")
        node = child
    try:
        node[leaf] = _parse_yaml(text)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: {text!r} is not valid YAML") from None


def _explain(error: ValidationError, origin: str, kind: type[Section] = RunConfig) -> str:
    problems = [_explain_one(e, kind) for e in error.errors()[:5]]
    subject = f"config {origin}" if kind is RunConfig else origin
    return f"{subject}: " + "; ".join(problems)


def _explain_one(problem: Any, kind: type[Section]) -> str:
    location = tuple(str(p) for p in problem["loc"] if not str(p).startswith("function-"))
    key = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(location[:-1], kind)
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
        return f"unknown key {key} (value {problem['input']!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if location else message
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(location: Sequence[str], kind: type[Section]) -> list[str]:
    """Return the keys allowed in the section at `location` below `kind`."""
    model: Any = kind
    for name in location:
        fields = getattr(model, "model_fields", {})
        if name in fields:
            model = _section_in(fields[name].annotation)
    return sorted(getattr(model, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """Return the Section class inside an annotation such as `list[PromptSource] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None
