"""On how many devices each phase of a run works, and what is started for it.

A run is one process on one device. Others train only where training is launched on them; they
sample only as Ray's workers or vLLM's copies, and score only as Ray's workers. Evaluation by
transformers, the warm-up and forward passes over prompts never leave the first. TRL trains on the
devices of one machine, and verl on those of several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cropi.config import RunConfig
from cropi.execution import usable_cores
from cropi.execution.ray_cluster import address_of
from cropi.forecast.hardware import PER_MACHINE
from cropi.plugins import Choice

IMPORT_S = 10.0
"""Seconds until a process computes: what it imports, and a connection to the others."""
SERVER_START_S = 60.0
"""Seconds until vLLM samples, besides reading weights: it compiles, and records graphs."""
SPREADABLE_PHASES = ("rollouts", "scoring", "training", "evaluation")
"""Phases that can have several devices."""


@dataclass(frozen=True)
class PhaseDevices:
    """Where a phase works: `devices` at once, which hold so many `copies` of the policy.

    Each time that its programs are started takes `start` seconds.
    """

    devices: int = 1
    copies: int = 1
    start: float = 0.0


@dataclass(frozen=True)
class Placement:
    """Where the phases of a run work.

    `asked` are devices that the config is taken to be spread over; None: as it says.
    """

    config: RunConfig
    on_gpu: bool = True
    asked: int | None = None

    def place_of(self, phase: str, backward: bool = True) -> PhaseDevices:
        """Where a phase works; without `backward`, scoring is forward passes over prompts."""
        match phase:
            case "start-up":
                return PhaseDevices(start=2 * IMPORT_S if self.workers_stay else IMPORT_S)
            case "training":
                return self._training()
            case "scoring" if backward:
                return self._workers()
            case "rollouts":
                return self._sampling(self.config.rollouts.engine, self._workers())
            case "evaluation":
                engine = self.config.evaluation.engine or self.config.rollouts.engine
                return self._sampling(engine, PhaseDevices())
        return PhaseDevices()

    @property
    def most(self) -> int:
        """Devices that the run occupies."""
        return max(self.place_of(phase).devices for phase in SPREADABLE_PHASES)

    @property
    def workers_stay(self) -> bool:
        """Whether Ray's workers wait for the next phase, and do not start again."""
        ray = self.config.scale.ray
        return ray is not None and not (self.on_gpu or ray.gpus or address_of(ray.address))

    def _training(self) -> PhaseDevices:
        engine = self.config.training.engine
        devices = self.asked or engine.devices
        over_machines = engine.name == "verl" or devices > PER_MACHINE
        start = SERVER_START_S if over_machines else IMPORT_S if devices > 1 else 0.0
        devices = devices if self.on_gpu else 1  # processes that share a machine's cores
        return PhaseDevices(devices, devices, start)

    def _workers(self) -> PhaseDevices:
        """Ray's workers, or this process."""
        ray = self.config.scale.ray
        if self.asked:
            return PhaseDevices(self.asked, self.asked, IMPORT_S if self.asked > 1 else 0.0)
        if ray is None:
            return PhaseDevices()
        if self.on_gpu:
            devices = math.ceil(ray.workers * ray.gpus)
        else:
            devices = ray.workers * ray.cpus // usable_cores() if address_of(ray.address) else 1
        devices = max(1, devices)
        return PhaseDevices(devices, devices, 0.0 if self.workers_stay else IMPORT_S)

    def _sampling(self, engine: Choice, otherwise: PhaseDevices) -> PhaseDevices:
        if engine.name == "transformers":
            return otherwise
        if engine.name != "vllm":
            return PhaseDevices()
        together = int(getattr(engine.settings, "tensor_parallel", 1))
        copies = int(getattr(engine.settings, "data_parallel", 1))
        if self.asked:
            copies = max(1, self.asked // together)
        return PhaseDevices(together * copies, copies, SERVER_START_S)

    def requests(self, engine: Choice, phase: str) -> int:
        """Prompts that a server samples at once; copies that are added have as many each."""
        each = int(getattr(engine.settings, "concurrency", 64))
        added = (
            self.place_of(phase).copies
            // Placement(self.config, self.on_gpu).place_of(phase).copies
        )
        return each * max(1, added)

    def unmet(self) -> list[str]:
        """Settings without which the run does not work on the devices that were asked for."""
        return [] if self.asked in (None, 1) else list(self._settings(self.asked or 1))

    def _settings(self, devices: int) -> Iterator[str]:
        plain, engine = Placement(self.config, self.on_gpu), self.config.rollouts.engine
        if plain.place_of("training").devices != devices:
            nodes = -(-devices // PER_MACHINE)
            yield (
                f"training.engine.launch.processes={devices}"
                if nodes == 1
                else f"training.engine={{name: verl, nodes: {nodes}, gpus: {PER_MACHINE}}}"
            )
        if plain.place_of("scoring").devices != devices:
            yield f"scale.ray={{workers: {devices}, gpus: 1}}"
        copies = self.place_of("rollouts").copies
        if engine.name == "vllm" and copies != plain.place_of("rollouts").copies:
            yield f"rollouts.engine.data_parallel={copies}"
            yield f"rollouts.engine.concurrency={self.requests(engine, 'rollouts')}"
