"""The executor that the settings ask for."""

from __future__ import annotations

from cropi.execution.on_ray import RayWorkers
from cropi.execution.settings import ScaleConfig
from cropi.execution.units import Executor


def executor_for(scale: ScaleConfig) -> Executor | None:
    """The executor of `scale`; None where everything is done in this process."""
    ray = scale.ray
    return None if ray is None else RayWorkers(ray.workers, ray.cpus, ray.gpus, ray.address)
