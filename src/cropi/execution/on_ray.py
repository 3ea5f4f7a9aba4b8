"""Units in workers that Ray places: on the cores and GPUs of this machine or of a cluster.

Ray Core alone is used: it starts actors, tells when one is gone, and moves results. An actor is a
worker process that runs one unit after the other. When it dies, another takes its place as soon as
there is room, and its unit is run again, at most ATTEMPTS times. Ray's own retries are off: an
actor that is killed for its memory would try the same unit for ever.

Ray is imported when the first units are run, and only then.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from cropi import __version__
from cropi.errors import InputError
from cropi.execution.packing import Packer, Shared
from cropi.execution.ray_cluster import address_of, connect, require_room
from cropi.execution.ray_worker import Outcome, Worker
from cropi.execution.units import Finished, GivenUpError, WorkUnit

ATTEMPTS = 3
"""Tries before a unit is given up: its worker may have died for another reason."""
LATE_AFTER_S = 30.0
"""Seconds before which no unit is late."""
LATE_FACTOR = 3.0
"""A unit is late after this many times the median duration of finished units."""
POLL_S = 1.0
"""Seconds between two searches for late units when nothing ends."""

STUCK_S = 60.0
"""Seconds without any worker before a warning."""


@dataclass(eq=False)
class Attempt:
    """A unit that is being run."""

    unit: WorkUnit
    worker: Any
    started: float = field(default_factory=time.monotonic)


class RayWorkers:
    """Runs units in up to `workers` actors, each with `cpus` cores and threads, and `gpus` GPUs.

    `address` is that of a cluster (`ray_cluster.connect`); late units are looked for after
    `late_after` seconds.

    Workers for which the cluster has no room yet start when it has. A unit whose worker dies, or
    that fails with anything but an InputError, is run again, preferably elsewhere; after ATTEMPTS
    failures it is reported as failed with a GivenUpError, and the others continue. A unit that is
    late while workers have nothing to do is run a second time, if it is `speculative`; the first
    to end counts. Raises InputError from `__enter__` if there is no such cluster, or no room in it.

    Workers end when the context is left, since others may need their resources. Only on a Ray that
    was started for this process, and without GPUs, are they kept for the next use, until another
    pool of this process is entered.
    """

    def __init__(
        self,
        workers: int,
        cpus: int = 1,
        gpus: float = 0.0,
        address: str | None = None,
        late_after: float = LATE_AFTER_S,
    ) -> None:
        self.most, self.cpus, self.gpus, self.address = workers, cpus, gpus, address
        self.threads: int | None = cpus
        self._late_after = late_after
        self._idle: list[Any] = []
        self._running: dict[Any, Attempt] = {}
        self._driver = ""

    @property
    def workers(self) -> int:
        """Workers that have started."""
        return len(self._idle) + len(self._running)

    def __enter__(self) -> Self:
        self._ray = connect(self.address, self.most * self.cpus)
        require_room(self._ray, self.cpus, self.gpus)
        self._queue: deque[WorkUnit] = deque()
        self._starting: dict[Any, Any] = {}
        driver, self._driver = self._driver, self._ray.get_runtime_context().get_worker_id()
        if driver != self._driver:
            self._idle = []  # they belonged to another Ray
        for other in set(_parked) - {self}:
            other._kill_idle()
        _parked.discard(self)
        self._running.clear()
        self._unfinished: set[str] = set()
        self._failures: dict[str, list[str]] = {}
        self._durations: list[float] = []
        self._failed_starts, self._last_work = 0, time.monotonic()
        self._packer = Packer()
        self._stored_shared: tuple[Shared, Any] | None = None
        return self

    def submit(self, unit: WorkUnit) -> None:
        """Queue a unit."""
        self._queue.append(unit)
        self._unfinished.add(unit.name)

    def completed(self) -> Iterator[Finished]:
        """Yield units as they end. Raises InputError if no worker can be started."""
        while self._unfinished:
            self._start_workers()
            self._assign()
            waiting = [*self._starting, *self._running]
            ended, _ = self._ray.wait(waiting, num_returns=1, timeout=POLL_S)
            self._warn_if_stuck()
            for reference in ended:
                if reference in self._starting:
                    self._register_worker(reference)
                else:
                    yield from self._collect(reference)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keep = error is None and not self.gpus and address_of(self.address) is None
        busy = [attempt.worker for attempt in self._running.values()]
        for worker in [*self._starting.values(), *busy, *([] if keep else self._idle)]:
            self._ray.kill(worker)
        self._idle = self._idle if keep else []
        if keep:
            _parked.add(self)
        for worker in self._idle:
            worker.forget.options(name="cropi: wait").remote()
        self._running.clear()
        self._queue.clear()
        self._unfinished.clear()

    def _kill_idle(self) -> None:
        """Kill workers that are kept for the next use, to free their cores."""
        _parked.discard(self)
        for worker in self._idle:
            self._ray.kill(worker)
        self._idle = []

    def _start_workers(self) -> None:
        """Start as many workers as are missing, if there is work for them."""
        present = len(self._starting) + self.workers
        for _ in range(min(self.most, len(self._unfinished)) - present):
            environment = {"env_vars": {"OMP_NUM_THREADS": str(self.cpus)}}
            kind = self._ray.remote(Worker).options(
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_restarts=0,
                max_task_retries=0,
                runtime_env=environment,
            )
            worker = kind.remote(os.getcwd(), sys.path)
            self._starting[worker.version.options(name="cropi: start a worker").remote()] = worker

    def _warn_if_stuck(self) -> None:
        """Warn, once in a while without any worker, that the cluster has no room for one."""
        if self.workers:
            self._last_work = time.monotonic()
        elif time.monotonic() - self._last_work > STUCK_S:
            self._last_work = time.monotonic()
            warnings.warn(
                f"no Ray worker has started for {STUCK_S:.0f} s; the cluster may be busy: each "
                f"asks for {self.cpus} CPUs and {self.gpus:g} GPUs",
                stacklevel=2,
            )

    def _register_worker(self, reference: Any) -> None:
        """Add a worker that has started. Raises InputError if none can be started."""
        worker = self._starting.pop(reference)
        try:
            version = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts < ATTEMPTS:
                return
            raise InputError(
                f"no Ray worker can be started: {_first_line(error)}; install the same cropi "
                f"({__version__}) on every node, and start the run in a folder that all share"
            ) from None
        if version != __version__:
            raise InputError(
                f"a node of the Ray cluster has cropi {version}, and this one {__version__}; "
                "install the same version on every node"
            )
        self._failed_starts = 0
        self._idle.append(worker)

    def _assign(self) -> None:
        """Give idle workers the next units, or late units a second time."""
        while self._idle and (unit := self._next_unit()) is not None:
            worker = self._idle.pop()
            # As bytes: arrays that Ray unpacks cannot be written to, and torch complains of them.
            plain = pickle.dumps(replace(unit, shared=None))
            reference = worker.run.options(name=unit.name).remote(
                plain, self._shared_in_store(unit)
            )
            self._running[reference] = Attempt(unit, worker)

    def _next_unit(self) -> WorkUnit | None:
        if self._queue:
            return self._queue.popleft()
        running = [attempt.unit.name for attempt in self._running.values()]
        for attempt in self._running.values():
            if self._is_late(attempt) and running.count(attempt.unit.name) == 1:
                return attempt.unit
        return None

    def _is_late(self, attempt: Attempt) -> bool:
        unit = attempt.unit
        if not (unit.speculative and self._durations and unit.name in self._unfinished):
            return False
        limit = max(self._late_after, LATE_FACTOR * median(self._durations))
        return time.monotonic() - attempt.started > limit

    def _shared_in_store(self, unit: WorkUnit) -> list[Any]:
        """What a unit shares, in Ray's store; in a list, so that a worker reads it only once."""
        shared = self._packer.shared(unit)
        if shared is None:
            return []
        if self._stored_shared is None or self._stored_shared[0] is not shared:
            self._stored_shared = shared, self._ray.put(shared.content)
        return [shared.key, self._stored_shared[1]]

    def _collect(self, reference: Any) -> Iterator[Finished]:
        """Yield the result of an attempt, unless its unit is queued again."""
        attempt = self._running.pop(reference)
        unit = attempt.unit
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            outcome = Outcome(error=RuntimeError(self._describe_loss(error)))
            self._ray.kill(attempt.worker)
        else:
            self._idle.append(attempt.worker)
        for text in outcome.warnings:
            warnings.warn(f"{unit.name}: {text}", stacklevel=2)
        if unit.name not in self._unfinished:
            return  # its other attempt was faster
        if outcome.error is None:
            self._durations.append(outcome.seconds)
            outcome = _require_visible_output(unit, outcome)
        elif not isinstance(outcome.error, InputError):
            again = self._requeue_or_give_up(unit, outcome.error, outcome.place)
            if again is None:
                return
            outcome = Outcome(error=again)
        self._unfinished.discard(unit.name)
        yield Finished(unit, outcome.value, outcome.error, outcome.seconds)

    def _describe_loss(self, error: Exception) -> str:
        """Why a worker was lost, in a few words."""
        errors = self._ray.exceptions
        if isinstance(error, errors.OutOfMemoryError):
            used = re.search(r"[\d.]+ ?\w*B used / [\d.]+ ?\w*B", str(error))
            amounts = f" ({used[0].replace(' used / ', ' of ')})" if used else ""
            return f"its worker was ended because its node ran out of memory{amounts}"
        if isinstance(error, errors.RayActorError):
            return (
                "its worker died (killed by you, or by the system when memory ran out; or crashed)"
            )
        return _first_line(error)

    def _requeue_or_give_up(
        self, unit: WorkUnit, error: Exception, place: str
    ) -> GivenUpError | None:
        """Queue a failed unit again, or return its error after ATTEMPTS failures."""
        failures = self._failures.setdefault(unit.name, [])
        kind = f"{type(error).__name__} at {place}: " if place else ""
        failures.append(f"{kind}{error}".strip())
        if any(attempt.unit is unit for attempt in self._running.values()):
            return None
        if len(failures) < ATTEMPTS:
            warnings.warn(f"{unit.name}: {failures[-1]}; trying again", stacklevel=2)
            self._queue.append(unit)
            return None
        given_up = GivenUpError(
            f"{unit.name} was tried {ATTEMPTS} times and is left out: {failures[-1]}"
        )
        given_up.__cause__ = error
        return given_up


_parked: WeakSet[RayWorkers] = WeakSet()
"""Pools of this process that are not in use, and whose idle workers wait for the next use."""


def _require_visible_output(unit: WorkUnit, outcome: Outcome) -> Outcome:
    """The outcome of a unit that succeeded, or an error if its output is not visible here."""
    if unit.output is None or unit.output.exists():
        return outcome
    return Outcome(
        error=InputError(
            f"{unit.name} was written to {unit.output} on {outcome.node}, and is not here; use a "
            "folder that all nodes of the cluster share"
        )
    )


def _first_line(error: Exception) -> str:
    """Ray's error in one line: the last line of a traceback in a worker, else the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if lines[0].startswith("ray::") else lines[0])[:200]
