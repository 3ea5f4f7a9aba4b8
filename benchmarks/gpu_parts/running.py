"""Each part in a process of its own, ended at its limit: what it has sent by then is kept.

On a CPU they are forked from one that has loaded the libraries already. With a GPU each starts
afresh: a library that asks for devices while it is loaded would make the GPU unusable to its forks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from gpu_parts.record import CUT_OFF, Record
from gpu_parts.schedule import Part

LOADED = (
    "gpu_parts.costs",
    "gpu_parts.parity",
    "trl",
    "transformers.models.qwen2",
)
"""What the process that others are forked from has imported, on a CPU."""

OVERHEAD = 5.0
"""Seconds between the time when a part should stop and the time when it is ended."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Where:
    """The device, whether models have no size, a folder, and when the whole run ends."""

    device: str
    tiny: bool
    folder: Path
    end: float


def run_parts(parts: Sequence[Part], record: Record, where: Where, say: Say) -> None:
    """Run parts as long as there is time; those that there is none for are skipped by name."""
    context = multiprocessing.get_context("spawn" if where.device == "cuda" else "forkserver")
    context.set_forkserver_preload(list(LOADED))
    for part in parts:
        left = where.end - time.time()
        if left < part.least:
            why = f"{max(left, 0):.0f} s were left; it takes {part.least:.0f}"
            record.end(part.name, "skipped", why, None)
        else:
            run_part(part, record, where, context.Process, context.Pipe)
        entry = record.run["parts"][part.name]
        say(f"{part.name}: {entry['status']} {entry['why']} {entry['figures']}")


def run_part(
    part: Part,
    record: Record,
    where: Where,
    make_process: Callable[..., BaseProcess],
    make_pipe: Callable[[bool], tuple[Connection, Connection]],
) -> None:
    """Run one part and keep its figures."""
    start = time.time()
    receiving, sending = make_pipe(False)
    process = make_process(target=work, args=(part, where, sending))
    record.begin(part.name)
    process.start()
    sending.close()
    status, why = receive(part, record, receiving, where.end)
    stop(process, grace=0.0 if status == CUT_OFF else OVERHEAD)
    if status == "failed" and not why:
        why = f"its process ended with {process.exitcode}"
    record.end(part.name, status, why, time.time() - start)


def receive(part: Part, record: Record, pipe: Connection, end: float) -> tuple[str, str]:
    """Keep figures until the part says how it ended, is gone, or its time is over.

    Its own limit counts from when it has loaded its libraries.
    """
    until = end
    while pipe.poll(max(0.0, until - time.time())):
        try:
            kind, name, value = pipe.recv()
        except EOFError:
            return "failed", ""
        if kind == "begin":
            until = min(end, time.time() + part.limit)
        elif kind == "figure":
            record.figure(part.name, name, value)
        else:
            return name, value
    return CUT_OFF, f"its time was over; it may take {part.limit:.0f} s"


def stop(process: BaseProcess, grace: float) -> None:
    """End a part and what it started, after so many seconds to end by itself."""
    process.join(grace)
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def work(part: Part, where: Where, pipe: Connection) -> None:
    """In the part's process: send every figure, then how it ended."""
    os.setsid()
    from gpu_parts.place import NotHereError, Place

    try:
        figures = part.loaded()
        pipe.send(("begin", part.name, None))
        limit = min(part.limit, where.end - time.time())
        stopping = time.time() + limit - min(OVERHEAD, limit / 4)
        for name, value in figures(Place(where.device, where.tiny, stopping, where.folder)):
            pipe.send(("figure", name, value))
    except NotHereError as reason:
        pipe.send(("end", "skipped", str(reason)))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("end", "failed", f"{type(error).__name__}: {error}"[:500]))
        raise
    else:
        pipe.send(("end", "done", ""))
