"""Connecting to Ray: a cluster that runs already, or one on this machine for as long as we run."""

from __future__ import annotations

import os
from typing import Any

from cropi.errors import InputError
from cropi.execution.processes import usable_cores


def connect(address: str | None, cores: int) -> Any:
    """The module `ray`, connected; the connection lasts until this process ends.

    The cluster is the one at `address`, else at RAY_ADDRESS, else one that is started here with
    room for workers on so many `cores` (or all of the machine's), even if they have to share them.
    Raises InputError if Ray is not installed, or if there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise InputError(
            "scale.ray needs the package ray, which is not installed; install it with "
            "`pip install 'cropi[ray]'`, or remove scale.ray"
        ) from None
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    # Ray takes the messages of workers to our terminal otherwise, between our own.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            _start(ray, cores, quiet)
    except Exception as error:  # noqa: BLE001  (Ray raises nothing more special)
        where = f"scale.ray.address {address!r}" if address else "scale.ray"
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(
            f"{where}: Ray cannot be reached or started ({reason}); start a cluster with "
            "`ray start --head`, or leave scale.ray.address out to use this machine"
        ) from None
    return ray


def _start(ray: Any, cores: int, quiet: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=max(usable_cores(), cores), **quiet)


def require_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise InputError if no node has what one worker asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, wanted in (("CPU", cpus), ("GPU", gpus)):
        most = max((node.get(key, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise InputError(
                f"scale.ray.{key.lower()}s {wanted:g}: no node of the cluster has so many, the "
                f"largest has {most:g} {key}s; ask for less a worker, or add a node"
            )
