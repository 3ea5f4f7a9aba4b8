"""Seconds of a run's phases by arithmetic: the device's peak and bandwidth, and assumed shares.

    products    FLOPs / (devices x peak x share)
    decoding    steps x max(bytes that one step reads / bandwidth, its FLOPs / peak)

A decoding step reads the weights once and the cached keys and values of every response of the
batch. `transformers` decodes a batch until its longest response ends; other engines fill the places
of those that have ended. Each phase's work divides over the devices that it is placed on
(`cropi.forecast.placement`); a training step divides into at most as many parts as it has
responses, and the devices exchange weights and gradients (FSDP: gathered twice, reduced once).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cropi.config import RunConfig
from cropi.forecast.hardware import (
    DECODING_SHARE,
    DISK_BANDWIDTH,
    HOST_LINK_BANDWIDTH,
    LAYER_STEP_S,
    PER_MACHINE,
    PREFILL_SHARE,
    SHARES,
    Hardware,
)
from cropi.forecast.memory import FP32, kept_gradient_bytes
from cropi.forecast.model_shape import ModelShape
from cropi.forecast.placement import PhaseDevices, Placement
from cropi.forecast.workload import Work
from cropi.gradients.batching import BATCH_TOKENS
from cropi.rollouts.judged_groups import SamplingPlan
from cropi.store.metrics import FORWARD, FORWARD_BACKWARD

ADAM_BYTES = 8
"""Of the two moments of one parameter."""
EXCHANGED = 3 * 2
"""Bytes per parameter that FSDP moves in a step: two gathers and one reduction, in bfloat16."""
CHUNK_PROMPTS = SamplingPlan.chunk_prompts


@dataclass(frozen=True)
class AssumedSpeed:
    """Seconds of work where a run's phases are placed."""

    config: RunConfig
    shape: ModelShape
    hardware: Hardware
    placement: Placement

    def seconds(self, work: Work) -> float:
        """Seconds of all work of a phase."""
        place = self.place(work)
        starting = work.starts * place.start + self._begins(work, place) * self._reading(work.phase)
        if work.phase == "training":
            return starting + self._training(work, place.devices)
        products = self._products(work, FORWARD_BACKWARD * work.backward) + self._gradients(work)
        return starting + (products + self._generation(work, place)) / place.devices

    def _begins(self, work: Work, place: PhaseDevices) -> int:
        """How often weights are read: programs that train start again after every evaluation."""
        return work.starts if work.phase == "training" and place.start else work.begins

    def place(self, work: Work) -> PhaseDevices:
        """Where work is done: workers sample chunks of prompts, so that a few occupy few."""
        place = self.placement.place_of(work.phase, work.backward > 0)
        if work.phase != "rollouts" or self.config.rollouts.engine.name != "transformers":
            return place
        chunks = max(1, math.ceil(work.prompts / CHUNK_PROMPTS))
        return replace(place, devices=min(place.devices, chunks), copies=min(place.copies, chunks))

    def _reading(self, phase: str) -> float:
        """Weights are read; training also reads and writes the optimizer's state."""
        if phase == "start-up":
            return 0.0
        weights = self.shape.bytes * self.shape.parameters
        if phase == "training":
            state = self.shape.training_bytes * self.shape.parameters
            weights = 2 * (state + ADAM_BYTES * self.shape.trained)
        return weights / DISK_BANDWIDTH

    def _products(self, work: Work, per_parameter: float) -> float:
        share = SHARES.get(work.phase, PREFILL_SHARE)
        return per_parameter * self.shape.parameters / (self.hardware.peak * share)

    def _gradients(self, work: Work) -> float:
        """Every prompt's gradient is made, and read by what compares it with the directions.

        Directions in the main memory are brought in once per batch.
        """
        if work.phase != "scoring" or not work.backward:
            return 0.0
        moved = work.prompts * kept_gradient_bytes(self.shape)
        seconds = moved / (DECODING_SHARE * self.hardware.bandwidth)
        settings = self.config.influence
        if settings.target_memory != "offload" or not self.hardware.is_gpu:
            return seconds
        batches = work.backward / (settings.batch_tokens or BATCH_TOKENS["cuda"])
        held = FP32 * self.shape.compared * len(self.config.prompts.validation)
        return seconds + batches * held / HOST_LINK_BANDWIDTH

    def _generation(self, work: Work, place: PhaseDevices) -> float:
        """Sampling, and reading the prompts; seconds of all devices together."""
        read = FORWARD * (work.forward - work.backward)
        prefill = read * self.shape.parameters / (self.hardware.peak * PREFILL_SHARE)
        if not work.responses:
            return prefill
        engine, places, longest = self._sampler(work.phase, place)
        at_once = max(1.0, min(float(places), work.responses / place.copies))
        mean = work.generated / work.responses
        if engine in LAYER_STEP_S:
            steps = math.ceil(work.responses / at_once) * max(mean, min(longest, 2 * mean))
        else:
            steps = work.generated / at_once
        return prefill + steps * self._decoding_step(engine, at_once, self._context(work))

    def _context(self, work: Work) -> float:
        """Tokens that a response has before it on average, half of its own among them."""
        alone = work.responses if work.phase == "evaluation" else work.prompts
        prompt = (work.forward - work.backward) / max(1.0, alone)
        return prompt + work.generated / max(1.0, work.responses) / 2

    def _decoding_step(self, engine: str, at_once: float, context: float) -> float:
        shape, device = self.shape, self.hardware
        cache = at_once * context * shape.cached * shape.bytes
        moved = (shape.parameters * shape.bytes + cache) / (device.bandwidth * DECODING_SHARE)
        computed = FORWARD * shape.parameters * at_once / (device.peak * PREFILL_SHARE)
        least = LAYER_STEP_S.get(engine, 1e-4) * shape.layers if device.is_gpu else 0.0
        return max(moved, computed) + least

    def _sampler(self, phase: str, place: PhaseDevices) -> tuple[str, float, int]:
        """The engine, the responses that each copy samples at once, and the longest one."""
        config, rollouts = self.config, self.config.rollouts
        choice, responses, longest = rollouts.engine, rollouts.responses, rollouts.max_new_tokens
        if phase == "evaluation":
            choice = config.evaluation.engine or choice
            responses = config.evaluation.responses
            longest = config.evaluation.max_new_tokens or longest
        batch = getattr(choice.settings, "batch_size", None)
        asked = self.placement.requests(choice, phase) * responses / place.copies
        return choice.name, batch or asked, longest

    def _training(self, work: Work, devices: int) -> float:
        """All optimizer steps: sampling, and a pass forward and backward."""
        training = self.config.training
        parts = min(devices, training.step_responses)
        products = self._products(work, FORWARD_BACKWARD * work.backward) / parts
        at_once = max(1, training.step_responses // parts)
        mean = work.generated / max(1.0, work.responses)
        sampled_per_trained = work.responses / max(1, work.steps * training.step_responses)
        allowed = training.max_new_tokens or self.config.rollouts.max_new_tokens
        longest = min(allowed, 2 * mean)
        steps = work.steps * sampled_per_trained * max(mean, longest)
        engine = _sampling_engine(self.config, devices)
        sampling = steps * self._decoding_step(engine, at_once, self._context(work))
        read = FORWARD * (work.forward - work.backward) * self.shape.parameters
        prefill = read / (self.hardware.peak * PREFILL_SHARE * parts)
        return products + sampling + prefill + work.steps * self._exchange(parts)

    def _exchange(self, parts: int) -> float:
        """Seconds in which the devices of a step exchange weights and gradients."""
        if parts == 1:
            return 0.0
        speed = self.hardware.links if parts <= PER_MACHINE else self.hardware.network
        return EXCHANGED * self.shape.parameters / speed


def _sampling_engine(config: RunConfig, devices: int) -> str:
    """What samples in training: verl has vLLM, and TRL where its settings say so."""
    engine = config.training.engine
    by_itself = engine.name == "trl" and devices <= PER_MACHINE and not engine.grpo.get("use_vllm")
    return "trl" if by_itself else "vllm"
