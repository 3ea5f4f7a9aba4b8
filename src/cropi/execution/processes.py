"""Units in worker processes: a fixed number of threads each, GPUs in turn, no orphans."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cropi.execution.packing import PackedUnit, Packer, restorable
from cropi.execution.units import Finished, WorkUnit, call

THREADS = "OMP_NUM_THREADS"
"""Environment variable that a process's numerical libraries read when they are loaded."""


class Processes:
    """Runs up to `jobs` units at once, in fresh processes with `threads` CPU threads each.

    A process runs one unit after the other, and has a GPU of its own where there are several (they
    are assigned in turn). Workers end at once when the context is left by an exception, and when
    this process disappears. A worker that dies raises BrokenProcessPool from `completed`.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs = jobs
        self.threads: int | None = threads
        self.workers = jobs
        self._packer = Packer()
        self._pending: dict[Future[tuple[Any, float]], WorkUnit] = {}

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        shared = (context.Value("i", 0), visible_gpus())
        self._pool = ProcessPoolExecutor(self.jobs, context, _init_worker, shared)
        return self

    def submit(self, unit: WorkUnit) -> None:
        """Queue a unit, and start a worker for it if there are fewer than `jobs`."""
        # A worker inherits the environment at the moment it is started, which is here.
        with _environment(THREADS, str(self.threads)):
            self._pending[self._pool.submit(_call, self._packer.packed(unit))] = unit

    def completed(self) -> Iterator[Finished]:
        """Yield units as they end; those that ended in the meantime in order of submission."""
        while self._pending:
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in [future for future in self._pending if future in done]:
                yield _finished(self._pending.pop(future), future)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pending.clear()
        if error is None:
            self._pool.shutdown()
            return
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)


def usable_cores() -> int:
    """CPU cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def requested_threads() -> int | None:
    """Threads that the user asks numerical libraries for (outermost nesting level), or None."""
    outermost = os.environ.get(THREADS, "").split(",")[0].strip()
    return int(outermost) if outermost.isdecimal() and int(outermost) > 0 else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _finished(unit: WorkUnit, future: Future[tuple[Any, float]]) -> Finished:
    error = future.exception()
    if error is None:
        value, seconds = future.result()
        return Finished(unit, value, seconds=seconds)
    if isinstance(error, BrokenProcessPool) or not isinstance(error, Exception):
        raise error
    return Finished(unit, error=error)


def _call(packed: PackedUnit) -> tuple[Any, float]:
    """Make a unit's call, in a worker; its exception becomes one that can be sent back."""
    try:
        return call(packed.unit())
    except Exception as error:
        if (plain := restorable(error)) is error:
            raise
        raise plain from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, and restore it afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _init_worker(started: Any, gpus: list[str]) -> None:
    """Give this worker a GPU of its own, in turn: a training process should see only one."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with started.get_lock():
        number = started.value
        started.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]


def _exit_with_parent() -> None:
    """Exit when the parent is gone: an orphan would write into folders that others resume."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)
