"""Peak memory beyond the loaded model, each contender in a process of its own.

On a CPU the peak of the resident set (the kernel's high-water mark, set back before the run), on a
GPU torch's. The floor runs the same rows in one micro-batch; its peak less its gradients is what
activations cost. What ours needs beyond that and the targets is held against the largest layer's
gradients for the prompts in flight.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gradient_costs.plan import Run
    from gradient_costs.rollouts import Sizes
    from gradient_costs.setting import Setting

TARGETS = 2


@dataclass(frozen=True)
class Request:
    """What one process is to measure."""

    what: str
    model: str | None
    pocket: bool
    device: str
    prompts: int
    threads: int


def main() -> None:
    """Measure what the request on the command line asks for, and print it as JSON."""
    request = Request(**json.loads(sys.argv[1]))
    torch.set_num_threads(request.threads)
    print(json.dumps(measure(request)))


def measure(request: Request) -> dict[str, float]:
    """Bytes of what a request names."""
    from gradient_costs.rollouts import Sizes
    from gradient_costs.setting import load_setting

    setting = load_setting(request.model, request.pocket, request.device)
    sizes = Sizes(20, 8, 12) if request.pocket else Sizes()
    return measured(setting, request.what, request.prompts, sizes)


def measured(setting: Setting, what: str, prompts: int, sizes: Sizes) -> dict[str, float]:
    """Bytes: the model's, the peak beyond it, and the parts that are known.

    On a CPU the process should have done nothing before.
    """
    from gradient_costs.rollouts import Sizes, synthetic

    groups = synthetic(setting.model, prompts, sizes, seed=0)
    small = synthetic(setting.model, 1, Sizes(8, 2, 4), seed=1)
    run, held = prepared(setting.model, what, groups, small)
    before = settled()
    run()
    held_bytes = {
        "model": setting.bytes,
        "peak": peak() - before + held,
        "targets": held,
        "gradients": setting.bytes if what == "floor" else 0,
        "largest_layer": setting.largest,
    }
    return {name: float(value) for name, value in held_bytes.items()}


def prepared(
    model: Any, what: str, groups: list[Any], small: list[Any]
) -> tuple[Callable[[], None], int]:
    """The run, after a small one has loaded all code, and the bytes of targets it holds already."""
    from gradient_costs import ours
    from gradient_costs.floor import Floor

    if what == "floor":
        Floor(model, small, 64).run()
        model.zero_grad(set_to_none=True)
        rows = sum(len(group.responses) for group in groups)
        return Floor(model, groups, rows).run, 0
    scorer = ours.exact_scorer(model, share_prefix=what == "exact_shared")
    directions = ours.target_directions(scorer, {f"target {n}": small for n in range(TARGETS)})
    held = sum(v.numel() * v.element_size() for v in directions.values.values())
    ours.exact_pass(scorer, directions, small)
    return lambda: ours.exact_pass(scorer, directions, groups), held


def settled() -> int:
    """Bytes in use now, after giving back what is free; the high-water mark starts here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def peak() -> int:
    """Most bytes in use since `settled`."""
    return (
        int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else resident("VmHWM")
    )


def resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measure_all(this: Run) -> dict[str, Any]:
    """Measure each contender in a process of its own; what is derived stands beside it."""
    options, prompts = this.options, this.plan.memory_prompts
    rest = (options.model, options.pocket, this.setting.device.type, prompts, options.threads)
    runs = {what: in_own_process(Request(what, *rest)) for what in this.plan.memory_of}
    return {
        "runs": runs,
        "prompts_in_flight": prompts,
        **beyond_forecast(runs["floor"], runs["exact"], prompts),
        "peaks_over_model": {name: run["peak"] / run["model"] for name, run in runs.items()},
    }


def beyond_forecast(
    floor: Mapping[str, float], exact: Mapping[str, float], prompts: int
) -> dict[str, float]:
    """What exact influence needs beyond targets and activations, and over what it may need.

    That is the largest layer's gradients of the prompts in flight.
    """
    activations = floor["peak"] - floor["gradients"]
    excess = exact["peak"] - exact["targets"] - activations
    return {
        "activations": activations,
        "peak_over_model": exact["peak"] / exact["model"],
        "excess": excess,
        "excess_over_largest_layer": excess / (exact["largest_layer"] * prompts),
    }


def in_own_process(request: Request) -> dict[str, float]:
    """Run this module on a request."""
    folder = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(p for p in (folder, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-m", "gradient_costs.memory", json.dumps(asdict(request))],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
