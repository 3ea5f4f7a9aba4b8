"""Bytes that a run's phases hold on one device, and on disk.

The largest thing at 7B is not the model. Exact influence holds the directions of all targets, and
two halves of the one that is being made (docs/method.md), each as long as the compared parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cropi.config import RunConfig
from cropi.curriculum.run_context import needs_of_arm
from cropi.forecast.model_shape import ModelShape
from cropi.forecast.prompt_counts import PromptCounts
from cropi.forecast.workload import Work, sampled_prompts
from cropi.gradients.batching import BATCH_TOKENS, LOGITS_BYTES
from cropi.influence.whitening import DIMENSIONS
from cropi.policy.hidden_states import LAYERS, MOST_DIMENSIONS
from cropi.selection import Needs
from cropi.study.costs import SHARED
from cropi.training.settings import TrainingConfig

FP32, BF16 = 4, 2
MEMORY_PARTS = ("directions", "sum", "weights", "optimizer", "activations", "cache", "logits")
"""What memory is held for: `optimizer` are gradients and moments, `cache` keys and values, `sum`
the gradient of a prompt whose responses go through the model in parts."""
GRADIENT_PASSES = 3
"""Times that a prompt's gradient, in fp32, is written or read: made, widened, and compared."""
HIDDEN_WIDTHS, INTERMEDIATE_WIDTHS = 12, 4
"""Numbers that a token leaves in a layer for backward: so many hidden and intermediate widths.

Of Qwen2, autograd keeps 11.4 and 4.0; attention scores are kept by no fused attention.
"""
RESPONSE_BYTES = 8
"""On disk a token of a response takes its id, its log-prob and its text, compressed."""
ROW_BYTES = 32
"""On disk a row of scores takes its id, its norm and its status, besides 4 bytes per target."""


@dataclass(frozen=True)
class MemoryPart:
    """What one phase holds in a device's memory: bytes by what they are (PARTS)."""

    phase: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes altogether."""
        return sum(self.parts.values())


def kept_gradient_bytes(shape: ModelShape) -> float:
    """Bytes of traffic that one prompt's gradient makes."""
    return GRADIENT_PASSES * FP32 * float(shape.compared)


def device_memory(
    config: RunConfig, shape: ModelShape, counts: PromptCounts, on_gpu: bool, gpus: int = 1
) -> list[MemoryPart]:
    """What the phases hold at their peak on one device, the directions first.

    Training over several devices shares its states evenly (FSDP).
    """
    scoring = _scoring(config, shape, counts, on_gpu)
    return [
        *scoring,
        _sampling(config, shape, counts),
        _training(config, shape, counts, on_gpu, gpus),
    ]


def _scoring(
    config: RunConfig, shape: ModelShape, counts: PromptCounts, on_gpu: bool
) -> Iterator[MemoryPart]:
    arms = [needs_of_arm(config, strategy) for strategy in config.strategies]
    scored = [needs for needs in arms if needs.scoring != "never"]
    if not scored:
        return
    targets = max(target_count(needs, counts) for needs in scored)
    settings = config.influence
    tokens = pass_tokens(config, shape, counts, on_gpu)
    logits = min(tokens * shape.vocabulary * FP32, LOGITS_BYTES["cuda" if on_gpu else "cpu"])
    logits = max(logits, config.rollouts.max_new_tokens * shape.vocabulary * FP32)
    activations = tokens * activation_bytes(shape, settings.gradient_checkpointing)
    yield MemoryPart(
        "scoring",
        {
            "directions": direction_bytes(config, shape, targets),
            "sum": sum_bytes(config, shape, counts, on_gpu),
            "weights": float(shape.parameters * shape.bytes),
            "activations": activations,
            "logits": logits * shape.bytes / FP32,
        },
    )


def target_count(needs: Needs, counts: PromptCounts) -> int:
    """How many directions a strategy compares prompts with."""
    return len(counts.validation) if needs.direction == "sets" else 1


def direction_bytes(config: RunConfig, shape: ModelShape, targets: int) -> float:
    """Bytes of the directions, and of the halves of the last one that is made."""
    settings = config.influence
    if not settings.sketch.is_exact or settings.target_memory == "offload":
        return 0.0
    each = BF16 if settings.target_memory == "bf16" else FP32
    return float(shape.compared * (targets * each + 2 * FP32))


def pass_tokens(config: RunConfig, shape: ModelShape, counts: PromptCounts, on_gpu: bool) -> int:
    """Positions of the largest pass: a batch, or the longest response that is allowed."""
    longest = min(shape.context, counts.longest + config.rollouts.max_new_tokens)
    return max(_batch_tokens(config, on_gpu), longest)


def sum_bytes(config: RunConfig, shape: ModelShape, counts: PromptCounts, on_gpu: bool) -> float:
    """Bytes of one gradient where a group may exceed a batch, and be taken in parts."""
    predictions = config.rollouts.responses * config.rollouts.max_new_tokens
    fits = counts.longest + predictions <= _batch_tokens(config, on_gpu)
    fits &= predictions * shape.vocabulary * FP32 <= LOGITS_BYTES["cuda" if on_gpu else "cpu"]
    return 0.0 if fits or config.influence.target_memory == "offload" else FP32 * shape.compared


def _batch_tokens(config: RunConfig, on_gpu: bool) -> int:
    return config.influence.batch_tokens or BATCH_TOKENS["cuda" if on_gpu else "cpu"]


def activation_bytes(shape: ModelShape, checkpointing: bool) -> float:
    """Bytes that a token leaves for backward: of all layers, or their inputs and one layer."""
    layer = (HIDDEN_WIDTHS * shape.hidden + INTERMEDIATE_WIDTHS * shape.intermediate) * shape.bytes
    if checkpointing:
        return float(shape.layers * shape.hidden * shape.bytes + layer)
    return float(shape.layers * layer)


def _sampling(config: RunConfig, shape: ModelShape, counts: PromptCounts) -> MemoryPart:
    """An engine that batches by itself holds what it is given; its part is not counted."""
    rollouts = config.rollouts
    at_once = int(getattr(rollouts.engine.settings, "batch_size", 0) or 0)
    length = min(shape.context, counts.longest + rollouts.max_new_tokens)
    return MemoryPart(
        "rollouts",
        {
            "weights": float(shape.parameters * shape.bytes),
            "cache": float(at_once * length * shape.cached * shape.bytes),
            "logits": float(2 * at_once * shape.vocabulary * FP32),
        },
    )


def _training(
    config: RunConfig, shape: ModelShape, counts: PromptCounts, on_gpu: bool, gpus: int
) -> MemoryPart:
    """Weights, gradients and Adam's moments; the logits of the responses of one pass."""
    training = config.training
    rows = device_batch(training, gpus)
    new = training.max_new_tokens or config.rollouts.max_new_tokens
    length = min(shape.context, counts.longest + new)
    checkpointing = bool(training.engine.grpo.get("gradient_checkpointing", on_gpu))
    sharing = min(gpus, training.step_responses) if _shares_states(config) else 1
    return MemoryPart(
        "training",
        {
            "weights": float(shape.parameters * shape.training_bytes / sharing),
            "optimizer": float(shape.trained * 3 * FP32 / sharing),
            "activations": rows * length * activation_bytes(shape, checkpointing),
            "logits": float(2 * rows * new * shape.vocabulary * FP32),
        },
    )


def device_batch(training: TrainingConfig, gpus: int) -> int:
    """Responses in one pass of a device: as many as are asked for, of its part of a step."""
    part = training.step_responses // min(gpus, training.step_responses)
    asked = training.engine.grpo.get("per_device_train_batch_size")
    return max(1, min(asked, part)) if isinstance(asked, int) else part


def _shares_states(config: RunConfig) -> bool:
    """Whether devices share weights and moments (FSDP), which a plain launch (DDP) does not."""
    launch = getattr(config.training.engine.settings, "launch", None)
    return launch is None or launch.config is not None


def host_bytes(
    config: RunConfig, shape: ModelShape, counts: PromptCounts, informative: float
) -> dict[str, float]:
    """Bytes in the main memory that grow with the pool: `sketches` of the gradients that are scored
    where influence is whitened or sketched, and `hidden states` of all prompts."""
    arms = [needs_of_arm(config, strategy) for strategy in config.strategies]
    scored = [needs for needs in arms if needs.scoring != "never"]
    metrics = {needs.metric or config.influence.metric for needs in scored}
    settings = config.influence.sketch.settings
    width = 0 if config.influence.sketch.is_exact else getattr(settings, "dim", DIMENSIONS)
    if "whitened" in metrics:
        width = max(width, DIMENSIONS)
    most = max([sampled_prompts(counts.pool.prompts, needs) for needs in scored], default=0)
    read = counts.pool.prompts if any(needs.hidden_states for needs in arms) else 0
    return {
        "sketches": float(most * informative * width * FP32),
        "hidden states": float(read * LAYERS * min(2 * shape.hidden, MOST_DIMENSIONS) * FP32),
    }


def disk_bytes(
    config: RunConfig, shape: ModelShape, counts: PromptCounts, works: Iterable[Work]
) -> dict[str, float]:
    """Bytes in the run directory when the run has ended, by what they are."""
    full = shape.trained == shape.parameters
    weights = shape.training_bytes * shape.parameters if full else FP32 * shape.trained
    state = 2 * FP32 * shape.trained
    everything = config.curriculum.keep_checkpoints == "all"
    stages = config.curriculum.stages if everything else 1
    each = stages * (weights + (state if everything else 0))
    started = weights if config.warmup.steps or config.training.lora is not None else 0
    sampled = sum(w.generated for w in works if w.phase in ("rollouts", "training"))
    scored = sum(w.prompts for w in works if w.phase == "scoring" and w.arm != SHARED)
    return {
        "checkpoints": float(len(config.strategies) * each + started),
        "rollouts": RESPONSE_BYTES * sampled,
        "scores": scored * (ROW_BYTES + FP32 * len(counts.validation)),
    }
