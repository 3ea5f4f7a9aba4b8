"""Several workers on one list of jobs: no job is lost, doubled or blamed for its neighbour."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from cropi.verifiers.runtime.process import WorkerDiedError, WorkerProcess
from cropi.verifiers.verdict import Job, Verdict

LARGEST_BATCH = 256


class WorkerPool:
    """Starts workers when there is work, and replaces those that hang or die."""

    def __init__(self, size: int, timeout: float, folders: Sequence[Path] = ()) -> None:
        self._size = size
        self._timeout = timeout
        self._folders = tuple(folders)
        self._workers: list[WorkerProcess] = []

    def load(self, specs: Iterable[str]) -> None:
        """Load verifiers in one worker. Raises InputError if one cannot be loaded."""
        try:
            self._hire(1)
            self._workers[0].revive()
            self._workers[0].load(specs)
        except BaseException:
            self.close()
            raise

    def judge(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return the verdict of every job, in order.

        Raises InputError if a verifier cannot be loaded.
        """
        verdicts: dict[int, Verdict] = {}
        waiting = deque(range(len(jobs)))
        batch = max(1, min(LARGEST_BATCH, math.ceil(len(jobs) / (4 * self._size))))
        try:
            self._hire(min(self._size, math.ceil(len(jobs) / batch)))
            while len(verdicts) < len(jobs):
                self._hand_out(jobs, waiting, batch, verdicts)
                self._collect(waiting, verdicts)
        except BaseException:
            # Also on Ctrl-C: a worker in an unknown state must not serve the next call.
            self.close()
            raise
        return [verdicts[i] for i in range(len(jobs))]

    def _hire(self, count: int) -> None:
        while len(self._workers) < count:
            self._workers.append(WorkerProcess(self._timeout, self._folders))

    def _hand_out(
        self, jobs: Sequence[Job], waiting: deque[int], batch: int, verdicts: dict[int, Verdict]
    ) -> None:
        """Give every idle worker its next jobs."""
        for worker in self._workers:
            if not worker.idle or not waiting:
                continue
            numbers = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            given = [jobs[i] for i in numbers]
            try:
                worker.revive()
                worker.load(dict.fromkeys(spec for job in given for spec, _ in job.terms))
                worker.give(numbers, given)
            except WorkerDiedError as death:
                worker.pending = deque(numbers)
                self._replace(worker, Verdict(math.nan, "error", str(death)), waiting, verdicts)

    def _collect(self, waiting: deque[int], verdicts: dict[int, Verdict]) -> None:
        """Wait for replies until the next deadline, and replace workers that died or hang."""
        busy = [w for w in self._workers if not w.idle]
        if not busy:
            return
        patience = max(0.0, min(w.deadline for w in busy) - time.monotonic())
        readable = set(wait([w.fileno() for w in busy], patience))
        for worker in busy:
            if worker.fileno() in readable:
                self._take(worker, waiting, verdicts)
        for worker in busy:
            # `ready` again: while others were served, its reply may have come.
            if not worker.idle and time.monotonic() >= worker.deadline and not worker.ready():
                late = f"no reward within {self._timeout:g} s"
                self._replace(worker, Verdict(math.nan, "timeout", late), waiting, verdicts)

    def _take(
        self, worker: WorkerProcess, waiting: deque[int], verdicts: dict[int, Verdict]
    ) -> None:
        try:
            for number, (status, reward, detail) in worker.replies():
                verdicts[number] = Verdict(reward, status, detail)
        except WorkerDiedError as death:
            self._replace(worker, Verdict(math.nan, "error", str(death)), waiting, verdicts)

    def _replace(
        self,
        worker: WorkerProcess,
        verdict: Verdict,
        waiting: deque[int],
        verdicts: dict[int, Verdict],
    ) -> None:
        """Give the job that the worker was at its verdict; the rest goes to the front again."""
        if worker.pending:
            verdicts[worker.pending.popleft()] = verdict
            waiting.extendleft(reversed(worker.pending))
        worker.restart()

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
