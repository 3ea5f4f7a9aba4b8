"""Work units, the interface of executors, and the order in which dependent units run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from cropi.errors import InputError
from cropi.schema import unique
from cropi.text import plural

if TYPE_CHECKING:
    from cropi.progress import ProgressCallback

NAMED_UNITS = 3
"""Units that an error names."""


class GivenUpError(InputError):
    """A unit that no worker could finish: it is left out, and the others continue."""


@dataclass(frozen=True)
class WorkUnit:
    """A call with a name.

    `function` and `arguments` have to be picklable for executors that run units elsewhere, and the
    function should be idempotent: a unit that was interrupted is simply run again.
    `output` is the file or folder that the call leaves; a call that returns without leaving it has
    failed. `after` names the units that must have succeeded before this one.

    `shared` is what many units have in common. It is sent to a worker once and stays there, with
    all that it has loaded in the meantime (a model, say), and is the function's first argument.
    `speculative` says that the call may be made twice at once: its output is written so that this
    does no harm.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    output: Path | None = None
    after: tuple[str, ...] = ()
    shared: Any = None
    speculative: bool = False


@dataclass(frozen=True)
class Finished:
    """A unit that ended: with the call's `value`, with an `error`, or without being run.

    `seconds` is what the call took where it ran. `skipped_after` names the unit whose failure kept
    this one from running.
    """

    unit: WorkUnit
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0
    skipped_after: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the call returned, and left its output."""
        return self.error is None and not self.skipped_after

    def result(self) -> Any:
        """The call's value. Raises the call's error."""
        assert not self.skipped_after, f"{self.unit.name} did not run"
        if self.error is not None:
            raise self.error
        return self.value


class Executor(Protocol):
    """Runs units; a context manager, which owns the workers.

    An exception of a unit is reported in its `Finished` and does not affect other units. Leaving
    the context by an exception (an interrupt, for instance) stops running units at once.
    """

    @property
    def threads(self) -> int | None:
        """CPU threads that each unit computes with; None where the executor does not set them."""

    @property
    def workers(self) -> int:
        """How many units are running, or could be, at this moment."""

    def submit(self, unit: WorkUnit) -> None:
        """Queue a unit; queued units start in the order of submission."""

    def completed(self) -> Iterator[Finished]:
        """Yield units in order of finish until none is left, those submitted meanwhile included."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Inline:
    """Runs units in this process, one after the other, in the order of submission."""

    threads: int | None = None
    workers = 1

    def __init__(self) -> None:
        self._queue: deque[WorkUnit] = deque()

    def submit(self, unit: WorkUnit) -> None:
        """Queue a unit; it runs when `completed` gets to it."""
        self._queue.append(unit)

    def completed(self) -> Iterator[Finished]:
        """Run the queued units; anything but an Exception, such as an interrupt, is raised."""
        while self._queue:
            unit = self._queue.popleft()
            try:
                value, seconds = call(unit)
            except Exception as error:  # noqa: BLE001  (reported by name)
                yield Finished(unit, error=error)
            else:
                yield Finished(unit, value, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.clear()


def call(unit: WorkUnit) -> tuple[Any, float]:
    """Make a unit's call; return its value and how many seconds it took."""
    start = time.perf_counter()
    arguments = unit.arguments if unit.shared is None else (unit.shared, *unit.arguments)
    value = unit.function(*arguments)
    if unit.output is not None and not unit.output.exists():
        raise FileNotFoundError(f"{unit.name} ended without leaving {unit.output}")
    return value, time.perf_counter() - start


def run_units(executor: Executor, units: Sequence[WorkUnit]) -> Iterator[Finished]:
    """Run every unit once the units in its `after` have succeeded; yield them in order of finish.

    Units without prerequisites are submitted first, in their order. Every unit is yielded exactly
    once: one whose prerequisite failed or was skipped is yielded as skipped.
    """
    _require_order(units)
    waiting = list(units)
    finished: dict[str, Finished] = {}

    def release() -> Iterator[Finished]:
        """Submit the units that have become ready, and yield those that never will be."""
        for unit in tuple(waiting):
            failed = [n for n in unit.after if n in finished and not finished[n].succeeded]
            if failed:
                waiting.remove(unit)
                finished[unit.name] = Finished(unit, skipped_after=failed[0])
                yield finished[unit.name]
            elif all(name in finished for name in unit.after):
                waiting.remove(unit)
                executor.submit(unit)

    yield from release()
    for result in executor.completed():
        finished[result.unit.name] = result
        yield result
        yield from release()


def run_all(
    executor: Executor, units: Sequence[WorkUnit], what: str, remedy: str
) -> Iterator[Finished]:
    """Run units as `run_units` does, and yield those that succeed.

    Raises InputError, after all others, that names the units which no worker could finish; `what`
    a unit is called, and the `remedy`, are for its sentence. Any other error is raised at once.
    """
    given_up = []
    for finished in run_units(executor, units):
        if isinstance(finished.error, GivenUpError):
            given_up.append(str(finished.error))
        elif not finished.skipped_after:
            finished.result()
            yield finished
    if given_up:
        more = f" and {len(given_up) - NAMED_UNITS} more" if len(given_up) > NAMED_UNITS else ""
        raise InputError(
            f"{len(given_up)} of {plural(len(units), what)} could not be finished: "
            f"{'; '.join(given_up[:NAMED_UNITS])}{more}; {remedy}"
        )


def showing_workers(
    update: Callable[[int, int, str], None], executor: Executor | None
) -> ProgressCallback:
    """Progress that notes how many workers there are, for work that is done elsewhere."""

    def show(done: int, total: int) -> None:
        note = "" if executor is None else plural(executor.workers, "worker")
        update(done, total, note)

    return show


def _require_order(units: Sequence[WorkUnit]) -> None:
    """Assert that names are unique, and that every unit comes after its prerequisites."""
    assert unique([unit.name for unit in units]), "two work units share a name"
    before: set[str] = set()
    for unit in units:
        assert before.issuperset(unit.after), f"{unit.name} comes before {unit.after}"
        before.add(unit.name)
