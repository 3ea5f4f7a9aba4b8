"""Where the time goes: the profile that goes with a figure which misses its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

TOP = 12


def profiled(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The operators that took most of one call, by their own time, in seconds."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        run()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, field))
    total = sum(getattr(row, field) for row in rows)
    return [
        {
            "operator": row.key,
            "seconds": getattr(row, field) / 1e6,
            "share": getattr(row, field) / total,
            "calls": row.count,
        }
        for row in rows[:TOP]
    ]


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Print one profile."""
    print(f"\nprofile of {name}")
    for row in rows:
        print(f"  {row['share']:>6.1%} {row['seconds']:>9.3f}s {row['calls']:>7} {row['operator']}")
