"""Many calls that wait for a server, at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

Value = TypeVar("Value")


def in_threads(
    call: Callable[[int], Value], count: int, threads: int
) -> Iterator[tuple[int, Value]]:
    """Yield `(index, call(index))` for every index below `count`, in order of finish.

    After an error no call is begun any more; those under way are waited for and yielded, because
    they have been paid for, and then the first error is raised. The threads are daemons: Ctrl-C
    ends the program without waiting for the server.
    """
    outcomes: SimpleQueue[tuple[int, Value | BaseException, bool]] = SimpleQueue()
    indices, lock, stopped = iter(range(count)), threading.Lock(), threading.Event()

    def work() -> None:
        while not stopped.is_set() and (index := _next_index(indices, lock)) is not None:
            try:
                outcomes.put((index, call(index), True))
            except BaseException as error:  # noqa: BLE001  (raised where the results are read)
                stopped.set()
                outcomes.put((index, error, False))
        outcomes.put((-1, StopIteration(), False))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(count, threads))]
    for worker in workers:
        worker.start()
    try:
        yield from _outcomes(outcomes, len(workers))
    finally:
        stopped.set()
    for worker in workers:  # nothing that `call` holds should outlive the last value
        worker.join()


def _next_index(indices: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(indices, None)


def _outcomes(
    outcomes: SimpleQueue[tuple[int, Value | BaseException, bool]], workers: int
) -> Iterator[tuple[int, Value]]:
    """Yield values until every worker has ended; then raise the first error."""
    errors: list[BaseException] = []
    while workers:
        index, value, is_value = outcomes.get()
        if is_value:
            yield index, value  # type: ignore[misc]
        elif index < 0:
            workers -= 1
        else:
            assert isinstance(value, BaseException)
            errors.append(value)
    if errors:
        raise errors[0]
