"""cropi plan: what a run will cost, before it is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_reporter, print_table
from cropi.errors import InputError

if TYPE_CHECKING:
    from cropi.forecast import ArmForecast, Forecast, PhaseForecast
    from cropi.progress import ProgressReporter


def plan(
    config: Config,
    settings: Settings = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Plan for b200, h200, h100, a100, l40s, 4090, 3090, l4 or cpu; "
            "default: what this machine has"
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Plan for a run spread over this many GPUs; default: as the config says",
        ),
    ] = None,
    pilot: Annotated[
        bool,
        typer.Option("--pilot", help="Sample 200 prompts first: response lengths, dead groups"),
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure this machine first, by two short runs")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON")] = False,
) -> None:
    """Forecast a run: tokens, FLOPs, time, memory and disk, and when selection pays.

    Nothing is trained, and no weight is loaded, unless --pilot or --probe ask for it; what they
    measure is kept in the user's cache directory.

    Examples:

        cropi plan my.yaml

        cropi plan my.yaml --gpu h100 --gpus 8 --pilot
    """
    loaded, base = load(config, settings)
    devices = loaded.training.engine.devices
    if probe and (gpu is not None or (gpus or devices) > 1):
        raise InputError(
            "--probe measures one device of this machine, and --gpu, --gpus or a launch of "
            "training ask for others; leave one of them out"
        )
    from cropi.config import resolve_model_path
    from cropi.forecast import plan_run
    from cropi.forecast.hardware import find_hardware

    loaded = resolve_model_path(loaded, base)
    hardware = find_hardware(gpu, loaded.model.device)
    if gpus is not None and not hardware.is_gpu:
        raise InputError(
            f"--gpus {gpus} counts GPUs, and the plan is for a CPU, whose cores a run shares; name "
            "the GPU with --gpu, or leave --gpus out"
        )
    reporter = _quiet_reporter() if as_json else make_reporter()
    forecast = plan_run(loaded, base, hardware, gpus, pilot=pilot, probe=probe, reporter=reporter)
    if as_json:
        typer.echo(json.dumps(_as_values(forecast), indent=2))
        return
    reporter.info(f"cropi plan {config}  ->  {loaded.directory}", style="bold")
    _print(forecast, reporter)


def _quiet_reporter() -> ProgressReporter:
    """A reporter that leaves stdout to the JSON."""
    import sys

    from rich.console import Console

    from cropi.progress import ProgressReporter

    return ProgressReporter(Console(file=sys.stderr))


def _as_values(forecast: Forecast) -> dict[str, Any]:
    """Everything, with the totals and shares that the table shows."""
    values = asdict(forecast)
    for arm, each in zip(values["arms"], forecast.arms, strict=True):
        arm |= {"share": each.share, "acceleration": each.acceleration}
    totals = {
        "seconds": forecast.seconds,
        "flops": forecast.flops,
        "device_hours": forecast.device_hours,
        "disk_bytes": sum(forecast.disk.values()),
    }
    return {**values, "totals": totals}


def _print(forecast: Forecast, reporter: ProgressReporter) -> None:
    reporter.info(_about(forecast))
    reporter.info("")
    print_table(*_phase_table(forecast))
    reporter.info("")
    print_table(*_memory_table(forecast))
    reporter.info("")
    for line in [*_disk_lines(forecast), *map(_verdict, forecast.arms), *_dead_lines(forecast)]:
        reporter.info(line)
    for text in forecast.assumptions:
        reporter.info(f"~ {text}", style="dim")
    for text in forecast.advice:
        reporter.warn(text)


def _about(forecast: Forecast) -> str:
    from cropi.report.kit.number_format import amount

    shape, pool = forecast.shape, forecast.counts.pool
    devices = f"{forecast.gpus} x {forecast.hardware.name}"
    return (
        f"{shape.name}: {amount(shape.parameters)} parameters, {shape.layers} layers, "
        f"on {devices}; a pool of {pool.prompts:,} prompts of {pool.tokens:.0f} tokens"
    )


def _phase_table(forecast: Forecast) -> tuple[list[str], list[list[str]]]:
    """A line for each phase of each arm; ~ marks seconds that nobody has measured."""
    several = forecast.gpus > 1
    rows = [
        [
            *(each.arm, each.phase, f"{each.prompts:,.0f}"),
            *_cost_cells(forecast, [each]),
            *([f"{each.devices:,}"] if several else []),
        ]
        for each in forecast.phases
    ]
    blank = [""] if several else []
    total = ["total", "", "", *_cost_cells(forecast, forecast.phases), *blank]
    hours = ["GPU hours"] if forecast.hardware.is_gpu else []
    at_work = ["at work"] if several else []
    return ["arm", "phase", "prompts", "tokens", "FLOPs", "time", *hours, *at_work], [*rows, total]


def _cost_cells(forecast: Forecast, phases: Sequence[PhaseForecast]) -> list[str]:
    """Tokens, FLOPs and time of some phases, and what the time is on all GPUs."""
    from cropi.report.kit.number_format import amount, duration

    seconds = sum(each.seconds for each in phases)
    mark = "" if all(each.measured for each in phases) else "~"
    cells = [
        amount(sum(each.tokens for each in phases)),
        amount(sum(each.flops for each in phases)),
        f"{mark}{duration(seconds)}",
    ]
    hours = f"{mark}{forecast.gpus * seconds / 3600:,.2f}"
    return [*cells, hours] if forecast.hardware.is_gpu else cells


def _memory_table(forecast: Forecast) -> tuple[list[str], list[list[str]]]:
    """Bytes by phase and by what they are for, in the unit that suits the largest of them."""
    from cropi.forecast.hardware import GIB
    from cropi.forecast.memory import MEMORY_PARTS

    largest = max(part.total for part in forecast.memory)
    unit, size = ("GiB", GIB) if largest >= GIB else ("MiB", GIB / 1024)

    def cell(amount: float) -> str:
        return f"{amount / size:,.1f}" if amount else ""

    memory = cell(forecast.hardware.memory)
    rows = [
        [each.phase, cell(each.total), *(cell(each.parts.get(name, 0.0)) for name in MEMORY_PARTS)]
        for each in forecast.memory
    ]
    return [f"memory ({unit} of {memory})", "total", *MEMORY_PARTS], rows


def _disk_lines(forecast: Forecast) -> list[str]:
    from cropi.forecast.advice import gib

    parts = ", ".join(f"{name} {gib(size)}" for name, size in forecast.disk.items() if size)
    lines = [f"disk: {gib(sum(forecast.disk.values()))} ({parts})"]
    host = [f"{name} {gib(size)}" for name, size in forecast.host.items() if size]
    return [*lines, f"main memory that grows with the pool: {', '.join(host)}"] if host else lines


def _verdict(arm: ArmForecast) -> str:
    """When selecting pays for an arm."""
    from cropi.report.kit.number_format import duration

    if not arm.selection:
        return f"{arm.arm}: selects nothing, and pays for its {arm.steps:,} steps alone"
    start = (
        f"{arm.arm}: selecting takes {duration(arm.selection)}, {arm.share:.0%} of its time, as "
        f"much as {arm.break_even:,.0f} of its {arm.steps:,} steps"
    )
    if arm.acceleration is None:
        return f"{start}: it cannot pay in this run"
    return f"{start}: it pays where it needs {arm.acceleration:.2f}x fewer steps than all data"


def _dead_lines(forecast: Forecast) -> list[str]:
    from cropi.estimation.intervals import share_interval
    from cropi.report.kit.number_format import percent_interval

    sampled = forecast.behaviour.pool
    if not sampled.groups:
        return []
    dead = share_interval(round((1 - sampled.informative) * sampled.groups), sampled.groups)
    return [
        f"dead groups, whose rewards are all equal: {percent_interval(dead)} of the pool, by the "
        f"{sampled.groups:,} of a {forecast.behaviour.source}"
    ]
