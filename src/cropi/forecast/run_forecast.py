"""What a run will cost, put together: phases, arms, memory and disk, and what to change.

Every number is arithmetic on the config, the prompts and the model's own config. What is guessed is
listed in `assumptions`; a pilot and a probe measure it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cropi.config import RunConfig
from cropi.forecast.advice import advice, assumptions
from cropi.forecast.assumed_speed import AssumedSpeed
from cropi.forecast.hardware import Hardware
from cropi.forecast.memory import MemoryPart, device_memory, disk_bytes, host_bytes
from cropi.forecast.model_shape import ModelShape, read_shape
from cropi.forecast.observation import LinearCost, MeasuredSpeed
from cropi.forecast.placement import SPREADABLE_PHASES, PhaseDevices, Placement
from cropi.forecast.prompt_counts import PromptCounts, count_prompts
from cropi.forecast.short_runs import ShortRuns
from cropi.forecast.workload import (
    Behaviour,
    Work,
    guessed_behaviour,
    is_selection_cost,
    summed_by_phase,
    workload,
)
from cropi.progress import ProgressReporter
from cropi.prompts import Room


@dataclass(frozen=True)
class PhaseForecast:
    """One phase of an arm (SHARED: of all), and the most devices that work in it at once.

    `measured` says whether a probe gave its seconds.
    """

    arm: str
    phase: str
    prompts: float
    tokens: float
    flops: float
    seconds: float
    devices: int
    measured: bool


@dataclass(frozen=True)
class ArmForecast:
    """What selecting and training cost an arm, and when selecting pays.

    `selection` are seconds (and FLOPs) of the rollouts that the arm reads and of its scoring,
    `training` those of its optimizer steps. Selecting costs as much as `break_even` steps: the arm
    is cheaper than training on everything once it saves more steps than that.
    """

    arm: str
    selection: float
    training: float
    selection_flops: float
    training_flops: float
    break_even: float
    steps: int

    @property
    def share(self) -> float:
        """Selection's share of the arm's seconds."""
        return self.selection / max(1e-12, self.selection + self.training)

    @property
    def acceleration(self) -> float | None:
        """How many times fewer steps it has to need; None where no saving can pay for it."""
        left = self.steps - self.break_even
        return self.steps / left if left > 0 else None


@dataclass(frozen=True)
class Forecast:
    """What a run will cost: it occupies `gpus` devices of `hardware`."""

    shape: ModelShape
    counts: PromptCounts
    hardware: Hardware
    gpus: int
    places: Mapping[str, PhaseDevices]
    behaviour: Behaviour
    phases: Sequence[PhaseForecast]
    arms: Sequence[ArmForecast]
    memory: Sequence[MemoryPart]
    host: Mapping[str, float]
    disk: Mapping[str, float]
    assumptions: Sequence[str] = ()
    advice: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Seconds from the first prompt to the last evaluation."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def flops(self) -> float:
        """Floating-point operations of all phases."""
        return sum(phase.flops for phase in self.phases)

    @property
    def device_hours(self) -> float:
        """Hours of all devices together, those that wait included."""
        return self.gpus * self.seconds / 3600


def plan_run(
    config: RunConfig,
    base: Path | None,
    hardware: Hardware,
    gpus: int | None = None,
    *,
    pilot: bool = False,
    probe: bool = False,
    reporter: ProgressReporter | None = None,
) -> Forecast:
    """Forecast a run of `config`, whose folder is `base`.

    `gpus` are devices that it is taken to be spread over; None: as the config says. A pilot and a
    probe run the config on few prompts of this machine. Raises InputError for whatever in the
    config, the prompts or the model cannot be used.
    """
    shape, tokenizer = read_shape(config)
    Room.of(config.prompts.max_tokens, shape.context, config.longest_response)
    counts = count_prompts(config, tokenizer, base)
    behaviour, measured = guessed_behaviour(config, counts), None
    runs = ShortRuns(config, counts, hardware, base, reporter)
    if probe:
        measured, behaviour = runs.probe(behaviour)
    if pilot:
        behaviour = runs.pilot(behaviour)
    return forecast(config, shape, counts, behaviour, hardware, gpus, measured)


def forecast(
    config: RunConfig,
    shape: ModelShape,
    counts: PromptCounts,
    behaviour: Behaviour,
    hardware: Hardware,
    gpus: int | None = None,
    measured: Mapping[str, LinearCost] | None = None,
) -> Forecast:
    """The forecast for a model of this shape and prompts of these counts; `gpus` as in `plan_run`.

    `measured` are a probe's lines by phase, of one device; arithmetic stands in for others.
    """
    works = workload(config, counts, behaviour)
    placement = Placement(config, hardware.is_gpu, gpus)
    speed = Speed(
        MeasuredSpeed(shape.parameters, measured or {}),
        AssumedSpeed(config, shape, hardware, placement),
    )
    phases = [_phase(each, works, shape, speed) for each in summed_by_phase(works)]
    trained_on = placement.place_of("training").devices
    memory = device_memory(config, shape, counts, hardware.is_gpu, trained_on)
    result = Forecast(
        shape=shape,
        counts=counts,
        hardware=hardware,
        gpus=placement.most,
        places={phase: placement.place_of(phase) for phase in SPREADABLE_PHASES},
        behaviour=behaviour,
        phases=phases,
        arms=list(_arms(config, works, shape, speed)),
        memory=memory,
        host=host_bytes(config, shape, counts, behaviour.pool.informative),
        disk=disk_bytes(config, shape, counts, works),
        assumptions=assumptions(
            config, counts, behaviour, hardware, placement, measured is not None
        ),
    )
    return replace(result, advice=advice(config, result, placement.unmet()))


@dataclass(frozen=True)
class Speed:
    """Seconds as a probe measured them, where it did, else by arithmetic."""

    measured: MeasuredSpeed
    assumed: AssumedSpeed

    def seconds(self, work: Work) -> tuple[float, bool]:
        """Seconds of a phase's work, and whether they rest on a measurement."""
        seconds = self.measured.seconds(work)
        return (self.assumed.seconds(work), False) if seconds is None else (seconds, True)


def _phase(work: Work, works: Sequence[Work], shape: ModelShape, speed: Speed) -> PhaseForecast:
    """A phase of an arm, whose parts may be on different devices."""
    parts = [each for each in works if (each.arm, each.phase) == (work.arm, work.phase)]
    seconds = [speed.seconds(part) for part in parts]
    return PhaseForecast(
        work.arm,
        work.phase,
        work.prompts,
        work.tokens,
        work.flops(shape.parameters),
        sum(each for each, _ in seconds),
        max(speed.assumed.place(part).devices for part in parts),
        all(measured for _, measured in seconds),
    )


def _arms(
    config: RunConfig, works: Sequence[Work], shape: ModelShape, speed: Speed
) -> Iterable[ArmForecast]:
    for strategy in config.strategies:
        arm = strategy.slug
        selecting = [work for work in works if is_selection_cost(arm, work)]
        training = [work for work in works if (work.arm, work.phase) == (arm, "training")]
        selection_s, training_s = (
            sum(speed.seconds(work)[0] for work in part) for part in (selecting, training)
        )
        steps = config.curriculum.steps
        yield ArmForecast(
            arm,
            selection_s,
            training_s,
            sum(work.flops(shape.parameters) for work in selecting),
            sum(work.flops(shape.parameters) for work in training),
            break_even=selection_s / max(1e-12, training_s / steps),
            steps=steps,
        )
