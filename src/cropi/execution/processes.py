"""Units in worker processes: a fixed number of threads each, GPUs in turn, no orphans."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cropi.errors import InputError
from cropi.execution.packing import PackedUnit, Packer, picklable_error
from cropi.execution.units import Finished, GivenUpError, WorkUnit, call
from cropi.text import plural

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Environment variable that a process's numerical libraries read when they are loaded."""
MOST_PER_CORE = 4
"""Processes for each core of a machine, beyond which they fill its memory and are no faster."""
DEATH_WAIT_S = 5.0
"""Seconds in which the system has to say how a process ended."""


class Processes:
    """Runs up to `jobs` units at once, in fresh processes with `threads` CPU threads each.

    A process runs one unit after the other, and has a GPU of its own where there are several (they
    are assigned in turn). Workers end at once when the context is left by an exception, and when
    this process disappears. The unit of a worker that dies has failed with a `GivenUpError`; the
    next units have a new worker in its place.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs = jobs
        self.threads: int | None = threads
        self.workers = jobs

    def __enter__(self) -> Self:
        gpus = visible_gpus()
        of_slot = [gpus[n % len(gpus)] if gpus else None for n in range(self.jobs)]
        self._idle = [_Slot(gpu) for gpu in reversed(of_slot)]
        self._queue: deque[WorkUnit] = deque()
        self._running: dict[Future[tuple[Any, float]], tuple[WorkUnit, _Slot]] = {}
        self._packer = Packer()
        return self

    def submit(self, unit: WorkUnit) -> None:
        """Queue a unit, and start a worker for it if there are fewer than `jobs`."""
        self._queue.append(unit)
        self._assign()

    def _assign(self) -> None:
        # A worker inherits the environment at the moment it is started, which is here.
        with _environment(THREADS_VARIABLE, str(self.threads)):
            while self._idle and self._queue:
                unit, slot = self._queue.popleft(), self._idle.pop()
                self._running[slot.run(self._packer.packed(unit))] = unit, slot

    def completed(self) -> Iterator[Finished]:
        """Yield units as they end; those that ended in the meantime in order of submission."""
        while self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in [future for future in self._running if future in done]:
                unit, slot = self._running.pop(future)
                self._idle.append(slot)
                finished = slot.finished(unit, future)
                self._assign()
                yield finished

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        slots = [*self._idle, *(slot for _, slot in self._running.values())]
        self._queue.clear()
        self._running.clear()
        for slot in slots:
            slot.end(at_once=error is not None)


class _Slot:
    """The place of one worker, with its GPU; a pool of its own, as one death breaks a whole pool.

    Its process starts with the first unit, and again with the next one after a death.
    """

    def __init__(self, gpu: str | None) -> None:
        self._gpu = gpu
        self._pool: ProcessPoolExecutor | None = None
        self._processes: list[BaseProcess] = []

    def run(self, packed: PackedUnit) -> Future[tuple[Any, float]]:
        """Begin a unit's call."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawn, _init_worker, (self._gpu,))
        future = self._pool.submit(_call, packed)
        self._processes = list((self._pool._processes or {}).values())
        return future

    def finished(self, unit: WorkUnit, future: Future[tuple[Any, float]]) -> Finished:
        """What became of a unit that ended. Raises what is no Exception, such as an interrupt."""
        error = future.exception()
        if error is None:
            value, seconds = future.result()
            return Finished(unit, value, seconds=seconds)
        if isinstance(error, BrokenProcessPool):
            error = GivenUpError(f"{unit.name} is not finished: its process {self._death()}")
            self.end(at_once=False)
        if not isinstance(error, Exception):
            raise error
        return Finished(unit, error=error)

    def _death(self) -> str:
        """How the process ended."""
        deadline = time.monotonic() + DEATH_WAIT_S
        for process in self._processes:
            process.join(timeout=DEATH_WAIT_S)
            # The pool's own thread waits for it too: one of the two gets the exit code from the
            # system, and the other a moment later from the first.
            while process.exitcode is None and time.monotonic() < deadline:
                time.sleep(0.01)
        codes = [process.exitcode for process in self._processes if process.exitcode]
        return death(codes[0] if codes else None)

    def end(self, at_once: bool) -> None:
        """End the process, at once or when it is done."""
        if self._pool is None:
            return
        if at_once:
            for process in self._processes:
                process.terminate()
        self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
        self._pool = None


def death(code: int | None) -> str:
    """How a process ended that no one has asked to, for a sentence; `code` is negative signals."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL: by you, or by the system when memory ran out)"
    if code is not None and code < 0:
        return f"died of {signal.Signals(-code).name}"
    return "died" if code is None else f"ended by itself (exit code {code})"


def usable_cores() -> int:
    """CPU cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_bearable(processes: int, setting: str) -> None:
    """Raise InputError, naming the setting, for more processes than this machine can bear."""
    cores = usable_cores()
    if processes > MOST_PER_CORE * cores:
        raise InputError(
            f"{setting} {processes:,} is more than {MOST_PER_CORE} processes for each of the "
            f"{plural(cores, 'core')} of this machine; give at most {MOST_PER_CORE * cores:,}"
        )


def requested_threads() -> int | None:
    """Threads that the user asks numerical libraries for (outermost nesting level), or None."""
    outermost = os.environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    return int(outermost) if outermost.isdecimal() and int(outermost) > 0 else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _call(packed: PackedUnit) -> tuple[Any, float]:
    """Make a unit's call, in a worker; its exception becomes one that can be sent back."""
    try:
        return call(packed.unit())
    except Exception as error:
        if (plain := picklable_error(error)) is error:
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


def _init_worker(gpu: str | None) -> None:
    """Give this worker a GPU of its own: a training process should see only one."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _exit_with_parent() -> None:
    """Exit when the parent is gone: an orphan would write into folders that others resume."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)
