"""Running a study: cells in worker processes, as many at once as asked for, resumable.

A worker process takes one piece of work after another: what a seed shares, then the seed's cells.
Cells that are finished cost nothing; one that fails does not stop the others.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from cropi.config import to_yaml
from cropi.errors import InputError
from cropi.progress import Bar, ProgressReporter
from cropi.store.files import atomic_write
from cropi.store.lock import exclusive_lock
from cropi.store.metrics import METRICS, EvaluationRow, read_rows
from cropi.study.plan import STUDY_FILE, Cell, StudyPlan
from cropi.study.reading import mapping_in

Work = Callable[..., None]
THREADS = "OMP_NUM_THREADS"
"""Read by a process's numerical libraries when it starts."""


def run_study(
    plan: StudyPlan,
    base: Path | None = None,
    reporter: ProgressReporter | None = None,
    jobs: int = 1,
) -> Path:
    """Run every cell that is not finished; return the study's directory.

    `jobs` cells run at once, each with its share of the CPU's cores (as large as when the study
    began), or with a GPU of its own where there are several. Raises InputError naming the cells
    that failed, after the others are done, or at once if another process is at work on the study.
    """
    with exclusive_lock(plan.root):
        threads = cell_threads(plan, jobs)
        with atomic_write(plan.root / STUDY_FILE) as part:
            part.write_text(to_yaml(plan.as_config(threads)), encoding="utf-8")
        _run_missing(plan, base, reporter or ProgressReporter(), jobs, threads)
    return plan.root


def cell_threads(plan: StudyPlan, jobs: int) -> int:
    """CPU threads of every cell: as asked for, else as the study began, whatever `jobs` is now.

    Sums of floating-point numbers depend on how they are divided among threads. Raises InputError
    if more or fewer are asked for than the study began with.
    """
    asked, known = plan.config.compare.threads, _threads_before(plan.root / STUDY_FILE)
    if asked and known and asked != known:
        raise InputError(
            f"compare.threads {asked}: {plan.root} was begun with {known} threads a cell, and its "
            f"cells should be computed alike; leave it at {known}, or choose another name"
        )
    return asked or known or _threads_at_first(jobs)


def _threads_at_first(jobs: int) -> int:
    """The user's own number of threads, or else a job's share of the cores."""
    own = os.environ.get(THREADS, "").split(",")[0].strip()  # the outermost level of a nested one
    if own.isdecimal() and int(own) > 0:
        return int(own)
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def _threads_before(study: Path) -> int | None:
    """The threads that a study says it was begun with; None where it does not."""
    compare = mapping_in(study).get("compare")
    known = compare.get("threads") if isinstance(compare, dict) else None
    return known if isinstance(known, int) and known > 0 else None


def _run_missing(
    plan: StudyPlan, base: Path | None, reporter: ProgressReporter, jobs: int, threads: int
) -> None:
    from cropi.study.cells import is_finished

    missing = [cell for cell in plan.cells() if not is_finished(cell.config, base)]
    total = len(plan.labels) * len(plan.seeds)
    if len(missing) < total:
        reporter.say(f"  {total - len(missing)} of {total} cells are finished", style="dim")
    if missing:
        with workers(jobs, threads) as pool, reporter.phase("cells", len(missing)) as bar:
            failures = _Schedule(plan, base, reporter, bar, pool).run(missing)
        if failures:
            left = sum(not is_finished(cell.config, base) for cell in missing)
            told = "; ".join(f"{title}: {error}" for title, error in failures.items())
            raise InputError(
                f"{left} of {total} cells are not finished ({told}); mend that and give the same "
                "command again"
            )


class _Schedule:
    """Submits a seed's cells once what they share is there, and tells of each that is done."""

    def __init__(
        self,
        plan: StudyPlan,
        base: Path | None,
        reporter: ProgressReporter,
        bar: Bar,
        pool: ProcessPoolExecutor,
    ) -> None:
        self.plan = plan
        self.base = base
        self.reporter = reporter
        self.bar = bar
        self.pool = pool
        self.failures: dict[str, str] = {}
        self.begun: dict[str, float] = {}

    def run(self, missing: list[Cell]) -> dict[str, str]:
        """Run all; return what went wrong, by the title of the cell."""
        from cropi.study.cells import prepare_shared, run_cell

        pending: dict[Future[float], Cell | int] = {
            self.pool.submit(
                timed,
                prepare_shared,
                self.plan.shared(seed),
                [cell.config for cell in missing if cell.seed == seed],
                self.base,
            ): seed
            for seed in dict.fromkeys(cell.seed for cell in missing)
        }
        done = 0
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                work = pending.pop(future)
                if isinstance(work, Cell):
                    done += 1
                    self._tell(work, future, done, len(missing))
                    self.bar.update(done, len(missing))
                elif self._succeeded(f"what seed {work} shares", future):
                    shared = self.plan.shared(work)
                    for cell in missing:
                        if cell.seed == work:
                            task = self.pool.submit(timed, run_cell, cell.config, shared, self.base)
                            pending[task] = cell
        return self.failures

    def _succeeded(self, title: str, future: Future[float]) -> bool:
        error = future.exception()
        if error is None:
            return True
        if isinstance(error, BrokenProcessPool) or not isinstance(error, Exception):
            raise error
        known = isinstance(error, InputError)
        told = str(error) if known else f"{type(error).__name__}: {error} (see its log.txt)"
        self.failures[title] = told
        self.reporter.warn(f"{title}: {told}")
        return False

    def _tell(self, cell: Cell, future: Future[float], done: int, total: int) -> None:
        if self._succeeded(cell.title, future):
            accuracy = last_accuracy(cell.config.directory)
            seconds = f"{future.result():5.0f} s"
            self.reporter.say(f"  {cell.title:<26} {accuracy:<44} {seconds}   [{done}/{total}]")


def timed(work: Work, *arguments: Any) -> float:
    """Do a piece of work; return how many seconds it took."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def last_accuracy(run: Path) -> str:
    """Targeted and untargeted accuracy of a cell's last evaluation, as text."""
    rows = read_rows(run / METRICS).of(EvaluationRow)
    last = [row for row in rows if row.step == max(r.step for r in rows)]
    parts = []
    for label, wanted in (("targeted", True), ("untargeted", False)):
        values = [next(iter(r.pass_at.values())) for r in last if r.targeted is wanted]
        if values:
            parts.append(f"{label} {sum(values) / len(values):.1%}")
    return "  ".join(parts)


@contextmanager
def workers(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes with so many CPU threads each, and GPUs in turn.

    An interrupt ends them at once: what they were at is done again from its last file.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    with _environment(THREADS, str(threads)):
        pool = ProcessPoolExecutor(jobs, context, _settle, (counter, visible_gpus()))
        try:
            yield pool
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for the processes that are started meanwhile, and put back what it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _settle(counter: Any, gpus: list[str]) -> None:
    """Give this worker a GPU of its own, in turn; a training process wants to see one alone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


def _end_with_parent() -> None:
    """End when the study's process is gone: an orphan would go on in cells that others resume."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
