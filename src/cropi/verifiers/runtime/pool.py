"""Several workers on one list of jobs.

Every job gets exactly one verdict, and a crash or timeout is attributed to the job that caused it.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cropi.verifiers.runtime.process import WorkerDiedError, WorkerProcess
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.verdict import Job, Verdict

LARGEST_BATCH = 256
LARGEST_DEFAULT = 8
SMALLEST_SHARE = 64
"""Starting another worker takes as long as judging this many responses."""


class WorkerPool:
    """Starts workers when there is work, and restarts those that hang or die."""

    def __init__(
        self,
        size: int | None,
        timeout: float,
        folders: Sequence[Path] = (),
        tags: Tags = DEFAULT_TAGS,
        memory_gb: float | None = None,
    ) -> None:
        """Of unknown size, it takes a core per worker, and fewer workers for few responses.

        `timeout` is in seconds for one response, `memory_gb` in GiB for each worker.
        """
        self._size = size or min(LARGEST_DEFAULT, len(os.sched_getaffinity(0)))
        self._per_worker = 1 if size else SMALLEST_SHARE
        self._tags = tags
        self._timeout, self._memory_gb = timeout, memory_gb
        self._folders = tuple(folders)
        self._workers: list[WorkerProcess] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process, which starts workers of its own."""
        return {**self.__dict__, "_workers": []}

    def load(self, specs: Iterable[str]) -> set[str]:
        """Load verifiers in one worker; return those of all so far that see whole groups.

        Raises InputError if one cannot be loaded.
        """
        try:
            self._spawn(1)
            self._workers[0].restart_if_dead()
            self._workers[0].load(specs)
            return self._workers[0].group_verifiers
        except BaseException:
            self.close()
            raise

    def judge(self, jobs: Sequence[Job]) -> list[list[Verdict]]:
        """Return the verdicts of every job, in order: one for each of its responses.

        Raises InputError if a verifier cannot be loaded.
        """
        verdicts: dict[int, list[Verdict]] = {}
        waiting = deque(range(len(jobs)))
        batch = max(1, min(LARGEST_BATCH, math.ceil(len(jobs) / (4 * self._size))))
        try:
            share = max(batch, self._per_worker)
            self._spawn(min(self._size, math.ceil(len(jobs) / share)))
            while len(verdicts) < len(jobs):
                self._dispatch(jobs, waiting, batch, verdicts)
                self._collect(waiting, verdicts)
        except BaseException:
            # Also on Ctrl-C: a worker in an unknown state must not serve the next call.
            self.close()
            raise
        # A job that ended its worker has one verdict for all its responses.
        alike = {i: v * len(jobs[i].completions) for i, v in verdicts.items() if len(v) == 1}
        return [(alike.get(i) or verdicts[i])[: len(job.completions)] for i, job in enumerate(jobs)]

    def _spawn(self, count: int) -> None:
        while len(self._workers) < count:
            worker = WorkerProcess(self._timeout, self._folders, self._tags, self._memory_gb)
            self._workers.append(worker)

    def _dispatch(
        self,
        jobs: Sequence[Job],
        waiting: deque[int],
        batch: int,
        verdicts: dict[int, list[Verdict]],
    ) -> None:
        """Give every idle worker its next jobs."""
        for worker in self._workers:
            if not worker.idle or not waiting:
                continue
            numbers = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            batch_jobs = [jobs[i] for i in numbers]
            try:
                worker.restart_if_dead()
                worker.load(dict.fromkeys(spec for job in batch_jobs for spec, _ in job.rewards))
                worker.submit(numbers, batch_jobs)
            except WorkerDiedError as death:
                worker.pending = deque(numbers)
                self._restart(worker, Verdict(math.nan, "error", str(death)), waiting, verdicts)

    def _collect(self, waiting: deque[int], verdicts: dict[int, list[Verdict]]) -> None:
        """Wait for replies until the next deadline, and restart workers that died or hang."""
        busy = [w for w in self._workers if not w.idle]
        if not busy:
            return
        timeout = max(0.0, min(w.deadline for w in busy) - time.monotonic())
        readable = set(wait([w.fileno() for w in busy], timeout))
        for worker in busy:
            if worker.fileno() in readable:
                self._read_replies(worker, waiting, verdicts)
        for worker in busy:
            # Ask `ready` again: its reply may have arrived while others were served.
            if not worker.idle and time.monotonic() >= worker.deadline and not worker.ready():
                detail = f"no reward within {worker.limit:g} s (more with verifiers.timeout)"
                self._restart(worker, Verdict(math.nan, "timeout", detail), waiting, verdicts)

    def _read_replies(
        self, worker: WorkerProcess, waiting: deque[int], verdicts: dict[int, list[Verdict]]
    ) -> None:
        try:
            for number, replies in worker.replies():
                verdicts[number] = [Verdict(r, status, detail) for status, r, detail in replies]
        except WorkerDiedError as death:
            self._restart(worker, Verdict(math.nan, "error", str(death)), waiting, verdicts)

    def _restart(
        self,
        worker: WorkerProcess,
        verdict: Verdict,
        waiting: deque[int],
        verdicts: dict[int, list[Verdict]],
    ) -> None:
        """Give `verdict` to the job that was running; the jobs after it go back to the front."""
        if worker.pending:
            verdicts[worker.pending.popleft()] = [verdict]
            waiting.extendleft(reversed(worker.pending))
        worker.restart()

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
