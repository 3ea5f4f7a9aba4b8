"""Connecting to Ray: a cluster that runs already, or one on this machine for as long as we run."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.execution.processes import MOST_PER_CORE, usable_cores


def connect(address: str | None, cores: int) -> Any:
    """The module `ray`, connected; the connection lasts until this process ends.

    The cluster is the one at `address`, else at RAY_ADDRESS, else one that is started here with
    room for workers on so many `cores` (or all of the machine's), even if they have to share them,
    up to PER_CORE to a core.
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
    address = address_of(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Ray takes the messages of workers to our terminal otherwise, between our own, and tells
    # of each that died in a paragraph, which we say in a sentence.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            _start(ray, cores, quiet)
    except Exception as error:  # noqa: BLE001  (Ray raises nothing more special)
        raise _refusal(address, error) from None
    if threading.current_thread() is threading.main_thread():
        # Ray's own answer to SIGTERM is a page of its stack.
        signal.signal(signal.SIGTERM, on_sigterm)
    return ray


def address_of(address: str | None) -> str | None:
    """The cluster that is meant; None for one that is started here."""
    return address or os.environ.get("RAY_ADDRESS")


def _refusal(address: str | None, error: Exception) -> InputError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    if address is None:
        return InputError(
            f"scale.ray: Ray could not be started on this machine, twice ({reason}); if the "
            "machine is busy give the same command again later, or remove scale.ray"
        )
    return InputError(
        f"scale.ray.address {address!r}: Ray cannot be reached ({reason}); start a cluster with "
        "`ray start --head`, or leave scale.ray.address out to use this machine"
    )


def _start(ray: Any, cores: int, quiet: dict[str, Any]) -> None:
    """Start Ray on this machine; it ends with this process, and its folder of logs with it.

    Nobody could find its dashboard. Its workers are as nice as we are: by default Ray's give way to
    everything else on the machine, which may be most of it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    wanted: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(usable_cores(), min(cores, MOST_PER_CORE * usable_cores())),
        "include_dashboard": False,
    }
    try:
        ray.init(**wanted, **quiet)
    except Exception:  # noqa: BLE001  (on a busy machine the 30 s that Ray waits for itself pass)
        ray.shutdown()
        ray.init(**wanted, **quiet)
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    atexit.register(_end, ray, folder)


def _end(ray: Any, folder: Path) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.with_name("session_latest")
    if latest.is_symlink() and not latest.exists():
        latest.unlink(missing_ok=True)


def require_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise InputError if no node has what one worker asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, wanted in (("CPU", cpus), ("GPU", gpus)):
        most = max((node.get(key, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise InputError(
                f"scale.ray.{key.lower()}s {wanted:g}: no node of the cluster has so many, the "
                f"largest has {most:g} {key}s; ask for less per worker, or add a node"
            )
