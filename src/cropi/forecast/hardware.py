"""Devices that a run may use: what their makers state, and the shares of it that are assumed.

Peaks are of dense bfloat16 products without sparsity. The shares are assumptions, not measurements:
a well-tuned run reaches them, a short one on a small model does not. `cropi plan --probe` measures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cropi.errors import InputError
from cropi.policy.loading import resolve_device

GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """One device: `peak` FLOPs per second, `bandwidth` bytes per second, `memory` bytes.

    `links` are bytes per second between the devices of a machine, `network` between machines.
    """

    name: str
    peak: float
    bandwidth: float
    memory: float
    links: float = 30e9
    network: float = 12.5e9

    @property
    def is_gpu(self) -> bool:
        """Whether it has a memory of its own."""
        return self.name != "cpu"


NVLINK = 450e9
INFINIBAND = 50e9
GPUS = {
    gpu.name: gpu
    for gpu in (
        Hardware("b200", 2250e12, 8.0e12, 180 * GIB, 900e9, INFINIBAND),
        Hardware("h200", 989e12, 4.8e12, 140 * GIB, NVLINK, INFINIBAND),
        Hardware("h100", 989e12, 3.35e12, 79 * GIB, NVLINK, INFINIBAND),
        Hardware("a100", 312e12, 2.0e12, 79 * GIB, 300e9, 25e9),
        Hardware("l40s", 362e12, 0.86e12, 44 * GIB),
        Hardware("4090", 165e12, 1.0e12, 23 * GIB),
        Hardware("3090", 71e12, 0.94e12, 23 * GIB),
        Hardware("l4", 121e12, 0.3e12, 22 * GIB),
    )
}
PER_MACHINE = 8
"""Devices that share links; more go over the network."""
CORE_PEAK, CPU_BANDWIDTH = 60e9, 20e9
"""FLOPs per second of one core, bytes per second of a machine: a guess."""

TRAINING_SHARE, SCORING_SHARE, PREFILL_SHARE, DECODING_SHARE = 0.35, 0.30, 0.40, 0.60
"""Share of the peak that training, scoring and reading prompts reach, and of the bandwidth that
decoding reaches."""
SHARES = {"training": TRAINING_SHARE, "scoring": SCORING_SHARE, "warmup": TRAINING_SHARE}
HOST_LINK_BANDWIDTH = 25e9
"""Bytes per second between a GPU and the main memory (PCIe 4)."""
DISK_BANDWIDTH = 1e9
"""Bytes per second that checkpoints are read and written with."""
LAYER_STEP_S = {"transformers": 6e-4, "trl": 6e-4}
"""Seconds that a layer takes at least when one token is decoded, by engine; 1e-4 for others, which
replay recorded graphs."""


def find_hardware(name: str | None, device: str = "auto") -> Hardware:
    """The named device, or the one of this machine that a run would use.

    Raises InputError for a name that is not known.
    """
    if name is not None and name.lower() in GPUS:
        return GPUS[name.lower()]
    if name not in (None, "cpu"):
        raise InputError(f"--gpu {name} is not known; choose {', '.join(GPUS)} or cpu")
    return _cpu() if name == "cpu" else _present(device)


def _present(device: str) -> Hardware:
    """The device that `model.device` means here."""
    place = resolve_device(device)
    if place.type == "cpu":
        return _cpu()
    import torch

    facts = torch.cuda.get_device_properties(place)
    title = facts.name.lower().replace("rtx", "").replace("-", " ").split()
    model = next((GPUS[name] for name in GPUS if name in title), GPUS["a100"])
    return Hardware(
        facts.name, model.peak, model.bandwidth, facts.total_memory, model.links, model.network
    )


def _cpu() -> Hardware:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Hardware("cpu", CORE_PEAK * (cores or 1), CPU_BANDWIDTH, float(pages * size))
