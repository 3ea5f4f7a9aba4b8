"""One worker process as the judge sees it: started, given jobs, watched, killed if it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.verifiers.runtime.channel import MessageReader, job_frame, write_all
from cropi.verifiers.runtime.worker import LOAD_SECONDS, OUT_OF_MEMORY, Reply
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.verdict import Job

# Not multiprocessing: its spawn imports the caller's main script again, so that a script without
# a __main__ guard would start itself. As with spawn, the worker gets the caller's import path.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from cropi.verifiers.runtime.worker import main; "
    "main(*json.loads(sys.argv[1]))"
)


class WorkerDiedError(Exception):
    """The worker's process ended or became unusable; the message says how."""


class WorkerProcess:
    """A worker, and the jobs it has not answered yet."""

    def __init__(
        self,
        timeout: float,
        folders: Sequence[Path] = (),
        tags: Tags = DEFAULT_TAGS,
        memory_gb: float | None = None,
    ) -> None:
        self.timeout, self.memory_gb = timeout, memory_gb
        self._options = json.dumps([timeout, memory_gb, tags.think, tags.answer])
        self.pending: deque[int] = deque()
        self.deadline = 0.0
        self.group_verifiers: set[str] = set()
        self._limits: dict[int, float] = {}
        self._loaded: list[str] = []
        self._folders = [str(f.absolute()) for f in (Path(), *folders)]
        self._start()

    def _start(self) -> None:
        path = [*sys.path, *(f for f in self._folders if f not in sys.path)]
        self._reader = MessageReader()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, self._options, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A separate group: its children die with it, and Ctrl-C reaches the judge alone.
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._stop = weakref.finalize(self, _stop, self._process, os.getpid())

    def fileno(self) -> int:
        """The descriptor on which replies arrive, for `select`."""
        return self._from

    @property
    def idle(self) -> bool:
        """Whether every job has been answered."""
        return not self.pending

    def load(self, specs: Iterable[str]) -> None:
        """Load verifiers that are not loaded yet.

        Raises InputError if one cannot be loaded, or hangs or kills the process while loading.
        """
        for spec in specs:
            if spec not in self._loaded:
                self._load(spec)
                self._loaded.append(spec)

    def _load(self, spec: str) -> None:
        try:
            self._send(("load", spec))
            if not self.ready(LOAD_SECONDS):
                self.kill()
                raise InputError(
                    f"verifier {spec!r} was not loaded within {LOAD_SECONDS:g} s; make its import "
                    "faster"
                )
            replies = self._receive()
            match replies:
                case [[str() as error, bool() as sees_groups]]:
                    pass
                case _:
                    raise self._broken()
        except WorkerDiedError as death:
            raise InputError(
                f"verifier {spec!r} cannot be loaded: {death}; fix what its import does"
            ) from None
        if error:
            raise InputError(error)
        if sees_groups:
            self.group_verifiers.add(spec)

    def restart(self) -> None:
        """Start a fresh process with the same verifiers; raises as `load` does."""
        self.kill()
        self.pending.clear()
        loaded, self._loaded = self._loaded, []
        self._start()
        self.load(loaded)

    def restart_if_dead(self) -> None:
        """Restart an idle worker that died since its last job, so no new job gets its error."""
        if self.ready():
            self.restart()

    def submit(self, numbers: Sequence[int], jobs: Sequence[Job]) -> None:
        """Send jobs, with the judge's numbers for them; the worker must be idle.

        An idle worker reads a whole message before it writes, so that neither side can block.
        Raises WorkerDiedError if the process is gone.
        """
        self.pending.extend(numbers)
        self._limits = {
            n: self.timeout * len(job.completions) for n, job in zip(numbers, jobs, strict=True)
        }
        self._send(("judge", list(jobs)))
        self._set_deadline()

    @property
    def limit(self) -> float:
        """The seconds that the job at hand has."""
        return self._limits[self.pending[0]]

    def _set_deadline(self) -> None:
        """Give the next job its time from now: that of one response for each that it holds."""
        if self.pending:
            self.deadline = time.monotonic() + self.limit

    def replies(self) -> list[tuple[int, list[Reply]]]:
        """Return the new replies with their job's number; the next job's deadline starts now.

        Raises WorkerDiedError if the process is gone, or sent something else than replies.
        """
        replies = [self._checked(message) for message in self._receive()]
        if len(replies) > len(self.pending):
            raise self._broken()
        numbered = [(self.pending.popleft(), reply) for reply in replies]
        self._set_deadline()
        return numbered

    def _checked(self, message: Any) -> list[Reply]:
        """Return a job's replies. Raises WorkerDiedError if they do not have that form."""
        replies: list[Reply] = []
        for reply in message if isinstance(message, list) else [None]:
            match reply:
                case ["ok" | "error" as status, float() | int() as reward, str() as detail]:
                    replies.append((status, float(reward), detail))
                case _:
                    raise self._broken()
        return replies

    def _broken(self) -> WorkerDiedError:
        """End a process whose pipe cannot be trusted any more; return the error."""
        self.kill()
        return WorkerDiedError("the verifier's process wrote to cropi's pipe")

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether a reply, or the end of the process, can be read within that time."""
        return bool(wait([self._from], seconds))

    def _send(self, message: Any) -> None:
        try:
            write_all(self._to, job_frame(message))
        except BrokenPipeError:
            raise WorkerDiedError(self._how_it_ended()) from None

    def _receive(self) -> list[Any]:
        try:
            return self._reader.read(self._from)
        except EOFError:
            raise WorkerDiedError(self._how_it_ended()) from None
        except ValueError:
            raise self._broken() from None

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            # The pipe closes shortly before the process ends; its exit code says why.
            self._process.wait(2.0)
        self.kill()
        code = self._process.returncode
        if code == OUT_OF_MEMORY:
            return f"the verifier's process needed more than verifiers.memory_gb={self.memory_gb:g}"
        if code >= 0:
            return f"the verifier's process exited with code {code}"
        return f"the verifier's process was killed by {_signal_name(-code)}"

    def kill(self) -> None:
        """End the process and everything it started."""
        self._stop()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the worker's group and free its pipes; does nothing in a fork of the judge."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
