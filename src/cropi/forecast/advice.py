"""Sentences about a forecast: what it assumes, and what to change if it does not fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cropi.config import RunConfig
from cropi.curriculum.run_context import needs_of_arm
from cropi.forecast.hardware import (
    DECODING_SHARE,
    GIB,
    PREFILL_SHARE,
    SCORING_SHARE,
    TRAINING_SHARE,
    Hardware,
)
from cropi.forecast.memory import FP32, MemoryPart, device_batch
from cropi.forecast.placement import IMPORT_S, SERVER_START_S, SPREADABLE_PHASES, Placement
from cropi.forecast.prompt_counts import PromptCounts
from cropi.forecast.workload import (
    GUESSED_INFORMATIVE,
    GUESSED_LENGTH,
    GUESSED_STALE,
    Behaviour,
    sampled_prompts,
)
from cropi.prompts import Room

if TYPE_CHECKING:
    from cropi.forecast.run_forecast import Forecast

USABLE_MEMORY = 0.92
"""Share of a device's memory that a run can fill: the rest is libraries and fragments."""
LARGE_HOST = 256 * GIB
COSTLY_SELECTION = 0.5
"""Share of an arm's time from which selection is worth a word."""
MANY_DEAD = 0.6


def assumptions(
    config: RunConfig,
    counts: PromptCounts,
    behaviour: Behaviour,
    hardware: Hardware,
    placement: Placement,
    probed: bool,
) -> list[str]:
    """What the numbers assume without a measurement."""
    return [
        *_assumed_of_responses(config, behaviour),
        *_assumed_of_samples(config, counts),
        *_assumed_of_speed(hardware, probed),
        *_assumed_of_placement(placement),
    ]


def _assumed_of_placement(placement: Placement) -> Iterator[str]:
    if placement.most > 1:
        yield (
            "a phase divides evenly over its devices, and training over as many of them as a step "
            "has responses: assumptions"
        )
    served = any(placement.place_of(phase).start == SERVER_START_S for phase in SPREADABLE_PHASES)
    server = f", vLLM and verl {SERVER_START_S:.0f} s" if served else ""
    yield f"a process takes {IMPORT_S:.0f} s to begin{server}: assumptions"


def _assumed_of_samples(config: RunConfig, counts: PromptCounts) -> Iterator[str]:
    for strategy in config.strategies:
        needs = needs_of_arm(config, strategy)
        if needs.sample and min(needs.sample, needs.most or needs.sample) < counts.pool.prompts:
            enough = sampled_prompts(counts.pool.prompts, needs)
            yield (
                f"{strategy.name} has seen enough of the pool after {enough:,.0f} prompts: a "
                f"guess; it begins with {needs.sample:,} and doubles them until it can predict "
                "the others"
            )


def _assumed_of_responses(config: RunConfig, behaviour: Behaviour) -> Iterator[str]:
    if behaviour.source == "guess":
        yield (
            f"a response has {GUESSED_LENGTH:.0%} of the tokens it may have "
            f"({behaviour.pool.response_tokens:,.0f}), and {GUESSED_INFORMATIVE:.0%} of the groups "
            "have a gradient: guesses, which --pilot measures"
        )
    if behaviour.source == "probe" and config.warmup.steps:
        yield (
            "responses are as long, and groups as often informative, as before the warm-up: "
            "--pilot measures them after it"
        )
    if config.curriculum.refresh == "stale":
        yield f"{GUESSED_STALE:.0%} of the pool is stale before every later stage: a guess"


def _assumed_of_speed(hardware: Hardware, probed: bool) -> Iterator[str]:
    if probed:
        return
    kind = "what its maker states" if hardware.is_gpu else "a guess"
    yield (
        f"the device computes {hardware.peak / 1e12:,.3g} TFLOP/s and reads "
        f"{hardware.bandwidth / 1e12:.3g} TB/s ({kind}), of which training reaches "
        f"{TRAINING_SHARE:.0%}, scoring {SCORING_SHARE:.0%}, reading prompts {PREFILL_SHARE:.0%} "
        f"and decoding {DECODING_SHARE:.0%}: assumptions; --probe measures this machine instead"
    )


def advice(config: RunConfig, forecast: Forecast, unmet: Sequence[str] = ()) -> list[str]:
    """What to change, most pressing first; nothing where all is well.

    `unmet` are settings that the forecast takes to be made.
    """
    limit = USABLE_MEMORY * forecast.hardware.memory
    over = [part for part in forecast.memory if part.total > limit]
    return [
        *config.remarks,
        *_advise_on_prompt_length(config, forecast),
        *(line for part in over for line in _ADVISERS[part.phase](config, forecast, part, limit)),
        *_advise_on_host_memory(forecast),
        *_advise_on_disk(config, forecast),
        *_advise_on_devices(config, forecast),
        *_advise_on_placement(config, forecast, unmet),
        *_advise_on_selection(forecast),
        *_advise_on_dead_groups(forecast),
    ]


def _advise_on_prompt_length(config: RunConfig, forecast: Forecast) -> Iterator[str]:
    """Prompts that are too long for the run."""
    room = Room.of(config.prompts.max_tokens, forecast.shape.context, config.longest_response)
    longest = forecast.counts.longest
    if config.prompts.overlong == "error" and longest > room.tokens:
        yield (
            f"a prompt has {longest:,} tokens, and the run stops at those of more than "
            f"{room.tokens:,}: set prompts.overlong=drop, or {room.fix}"
        )


def _advise_on_scoring_memory(
    config: RunConfig, forecast: Forecast, part: MemoryPart, limit: float
) -> Iterator[str]:
    shape, directions = forecast.shape, part.parts["directions"]
    rest = part.total - directions
    start = f"scoring needs {gib(part.total)} on a device of {gib(forecast.hardware.memory)}"
    if rest > limit:
        yield (
            f"{start}, {gib(rest)} of it without any target direction: lower "
            "influence.batch_tokens, or set influence.gradient_checkpointing=true"
            if part.parts["weights"] < limit
            else f"{start}, {gib(part.parts['weights'])} of it weights: set model.dtype=bfloat16, "
            "or use devices with more memory"
        )
    if part.parts["sum"] > 0.2 * limit:
        yield (
            f"{start}, {gib(part.parts['sum'])} of it the gradient of a prompt whose responses go "
            "through the model in parts, because together they can exceed influence.batch_tokens: "
            "influence.target_memory=offload holds it in the main memory, training.lora makes it "
            "small, and a higher influence.batch_tokens with "
            "influence.gradient_checkpointing=true does without"
        )
    if directions > 0.2 * limit:
        # The halves that a direction is made of stay in fp32.
        narrow = directions - (directions - 2 * FP32 * shape.compared) / 2
        yield (
            f"{start}, {gib(directions)} of it target directions: "
            f"influence.target_memory=bf16 makes that {gib(narrow)}, offload none (they go to the "
            "main memory, slower), and so does a sketch (influence.sketch=adaptive); "
            "training.lora compares adapters alone"
        )


def _advise_on_sampling_memory(
    config: RunConfig, forecast: Forecast, part: MemoryPart, limit: float
) -> Iterator[str]:
    batch = int(getattr(config.rollouts.engine.settings, "batch_size", 0) or 0)
    free, each = limit - part.parts["weights"], (part.total - part.parts["weights"]) / max(1, batch)
    if free < each or not batch:
        yield (
            f"the weights take {gib(part.parts['weights'])} of {gib(forecast.hardware.memory)}: "
            "use devices with more memory, or rollouts.engine vllm with tensor_parallel"
        )
    else:
        yield (
            f"rollouts need {gib(part.total)} with {batch} responses at once: set "
            f"rollouts.engine.batch_size={int(free // each)}, or use rollouts.engine vllm"
        )


def _advise_on_training_memory(
    config: RunConfig, forecast: Forecast, part: MemoryPart, limit: float
) -> Iterator[str]:
    responses = config.training.step_responses
    states = part.parts["weights"] + part.parts["optimizer"]
    start = f"training needs {gib(part.total)} on a device of {gib(forecast.hardware.memory)}"
    if states > 0.8 * limit:
        needed = -(-int(states * min(training_devices(forecast), responses)) // int(0.6 * limit))
        yield (
            f"{start}, {gib(states)} of it weights, gradients and Adam's moments: train adapters "
            f"(training.lora={{r: 16}}), or share them among {needed} or more devices"
        )
        return
    rows = (part.parts["activations"] + part.parts["logits"]) / (limit - states)
    most = device_batch(config.training, training_devices(forecast))
    usable = largest_divisor(responses, int(min(most, most // rows)))
    yield (
        f"{start}, {gib(part.parts['logits'])} of it logits: set "
        f"training.engine.grpo.per_device_train_batch_size={usable}"
    )


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`, or 1."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return max(d for n in small for d in (n, number // n) if d <= max(1, most))


_ADVISERS = {
    "scoring": _advise_on_scoring_memory,
    "rollouts": _advise_on_sampling_memory,
    "training": _advise_on_training_memory,
}


def _advise_on_host_memory(forecast: Forecast) -> Iterator[str]:
    total = sum(forecast.host.values())
    if total > LARGE_HOST:
        what = max(forecast.host, key=lambda name: forecast.host[name])
        yield (
            f"the main memory has to hold {gib(total)}, mostly {what} of the pool's prompts: give "
            "a smaller pool (prompts.limit), or a strategy that needs none"
        )


def _advise_on_disk(config: RunConfig, forecast: Forecast) -> Iterator[str]:
    needed, free = sum(forecast.disk.values()), _free(config.directory)
    if needed <= free:
        return
    everything = config.curriculum.keep_checkpoints == "all"
    remedy = "set curriculum.keep_checkpoints=last, or " if everything else ""
    yield f"the run leaves {gib(needed)} where {gib(free)} are free: {remedy}choose another `out`"


def _free(place: Path) -> float:
    """Bytes that are free where a folder is, or will be."""
    there = next(each for each in [place.absolute(), *place.absolute().parents] if each.exists())
    return float(shutil.disk_usage(there).free)


def _advise_on_devices(config: RunConfig, forecast: Forecast) -> Iterator[str]:
    responses = config.training.step_responses
    if (devices := training_devices(forecast)) > responses:
        yield (
            f"a step of {responses} responses occupies at most as many of the {devices} "
            "devices: raise training.prompts_per_step, or train on fewer"
        )


def training_devices(forecast: Forecast) -> int:
    """The number of devices that train."""
    return forecast.places["training"].devices


def _advise_on_placement(
    config: RunConfig, forecast: Forecast, unmet: Sequence[str]
) -> Iterator[str]:
    """Devices that the config leaves idle, and the settings that would use them."""
    trained, scored = training_devices(forecast), forecast.places["scoring"].devices
    ray = config.scale.ray
    if unmet:
        yield (
            f"this plan is for a run on {forecast.gpus} devices, and the config for another "
            f"number: set {' '.join(unmet)}"
        )
    elif trained > scored and _scores(forecast):
        yield (
            f"training is launched on {trained} devices, and scoring uses {scored} of them: set "
            f"scale.ray={{workers: {trained}, gpus: 1}} to spread it too"
        )
    elif ray is not None and ray.gpus == 0 and forecast.hardware.is_gpu:
        yield (
            "workers of Ray have no GPU by scale.ray.gpus=0, and the times are those of one "
            "device: set scale.ray.gpus=1"
        )


def _scores(forecast: Forecast) -> bool:
    return any(each.phase == "scoring" for each in forecast.phases)


def _advise_on_selection(forecast: Forecast) -> Iterator[str]:
    for arm in forecast.arms:
        if arm.acceleration is None:
            yield (
                f"selecting for {arm.arm} costs as much as {arm.break_even:,.0f} steps, and the "
                f"run has {arm.steps:,}: no saving can pay for it; train longer, sample fewer "
                "rollouts.responses, or give a smaller pool (prompts.limit)"
            )
        elif arm.share > COSTLY_SELECTION:
            yield (
                f"{arm.share:.0%} of the time of {arm.arm} is selection: fewer "
                "rollouts.responses, a smaller pool (prompts.limit) or a faster "
                "rollouts.engine make it cheaper"
            )


def _advise_on_dead_groups(forecast: Forecast) -> Iterator[str]:
    dead = 1 - forecast.behaviour.pool.informative
    if forecast.behaviour.source != "guess" and dead > MANY_DEAD:
        yield (
            f"{dead:.0%} of the groups are dead: training on everything would spend as much of its "
            "time on nothing; add prompts that the policy solves sometimes, or sample more "
            "responses"
        )


def gib(amount: float) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{amount / GIB:,.1f} GiB" if amount >= 0.1 * GIB else f"{amount * 1024 / GIB:,.1f} MiB"
