"""The benchmark from start to end: who takes part, in which order."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from gradient_costs import memory, ours, pool, precision, report
from gradient_costs.contenders import costs
from gradient_costs.plan import Options, Run, plan_of
from gradient_costs.scaling import scaling
from gradient_costs.setting import load_setting


def run(options: Options) -> dict[str, Any]:
    """Measure everything, write the results, print table and summary; return the results."""
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available() and options.device != "cpu"
    device = "cuda" if cuda else "cpu"
    plan = plan_of(options, device)
    with tempfile.TemporaryDirectory() as folder:
        setting = load_setting(options.model, options.pocket, device)
        this = Run(options, setting, plan, Path(folder))
        this.say(f"{setting.name} in {setting.dtype} on {device}, {setting.coordinates:,} weights")
        results = {"about": about(this), **costs(this)}
        results["pool"] = pool.costs(this, results["micro_batch"], results["times"]["naive"])
        results["precision"] = precision.precisions(this)
        this.say("peak memory, each in a process of its own")
        results["memory"] = memory.measure_all(this)
        if options.long:
            results["scaling"] = scaling(device, this.say)
        results["seconds"] = this.seconds
    report.finish(results, options.out)
    return results


def about(this: Run) -> dict[str, Any]:
    """The machine and the model, for the record."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "model": this.setting.name,
        "dtype": this.setting.dtype,
        "coordinates": this.setting.coordinates,
        "machine": f"{platform.machine()}, {this.options.threads} threads, GPU {gpu}",
        "torch": torch.__version__,
        "mode": "quick" if this.options.quick else "full",
        "prompts_a_repetition": this.plan.prompts,
        "sizes": vars(this.sizes),
        "dim": this.options.dim,
        "default_sketch": ours.DEFAULT_SKETCH,
    }
