"""Another program that runs while we need it, and ends when this process does, however it does.

Between the two stands a guard: this file, run as a script, which starts the program and waits for
the end of its standard input. The system closes that pipe when our process is gone, also by
SIGKILL, and the guard then ends the program with all its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_S = 0.1
"""Seconds between two looks at what a program has written."""
GRACE_S = 20.0
"""Seconds between asking a program to end and killing it."""
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that a process gets when its parent is gone."""


class Program:
    """A running program with all its children; its output is appended to the file `log`."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches us alone: we decide when the program ends.
                start_new_session=True,
            )
        self._stop = weakref.finalize(self, _stop, self._guard, os.getpid())

    @property
    def exit_code(self) -> int | None:
        """What the program ended with; None while it runs."""
        return self._guard.poll()

    @property
    def output(self) -> str:
        """What it has written to the log so far."""
        with self._log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def lines(self, file: Path) -> Iterator[Any]:
        """Yield the lines of JSON that the program appends to a file, until it has ended."""
        position = 0
        while True:
            ended = self.exit_code is not None
            if file.exists():
                with file.open("rb") as lines:
                    lines.seek(position)
                    whole = lines.read().rpartition(b"\n")[0]
                position += len(whole) + 1 if whole else 0
                yield from map(json.loads, whole.splitlines())
            if ended:
                return
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the program and its children, and wait until they are gone."""
        self._stop()


def _stop(guard: subprocess.Popen[bytes], owner: int) -> None:
    """Close the guard's input; not in a process that was forked from the one that started it."""
    if os.getpid() != owner:
        return
    assert guard.stdin is not None
    with contextlib.suppress(OSError):
        guard.stdin.close()
    try:
        guard.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:
        guard.kill()


def guard(command: Sequence[str]) -> int:
    """Run a command until it ends or standard input does; return its exit code."""
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_input, args=(program,), daemon=True).start()
    code = program.wait()
    _signal_group(program, signal.SIGKILL)  # children that outlived it
    return code


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the system send this process a signal when its parent is gone, on Linux.

    For a child that its parent starts in a session of its own; the guard may be killed too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _end_with_input(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal_group(program, signal.SIGTERM)
    try:
        program.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal_group(program, signal.SIGKILL)


def _signal_group(program: subprocess.Popen[bytes], number: int) -> None:
    """Signal the program and its children, which are in a group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, number)


def interpreter_at(python: str, setting: str, packages: str) -> str:
    """The path of the interpreter `python`, the value of a setting, which should have `packages`.

    Raises InputError if it is not there.
    """
    from cropi.errors import InputError

    path = shutil.which(os.path.expanduser(python))
    if path is None:
        raise InputError(
            f"{setting} {python} is not an interpreter; give the python of an environment that "
            f"has {packages}"
        )
    return path


def environment_for(python: str) -> dict[str, str]:
    """Our environment; our import path is of no use to another interpreter."""
    foreign = () if python == sys.executable else ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in foreign}


def last_error(output: str) -> str:
    """The last line of a log that names an error, or its last line, in short.

    Loggers' prefixes are left out.
    """
    from cropi.text import (
        printable,
        shortened,
    )  # not above: the guard has the standard library alone

    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    lines = [
        re.sub(r"^(\(\w+ pid=\d+\)|\[rank\d+\]:)\s*", "", x).strip() for x in plain.splitlines()
    ]
    lines = [re.sub(r"^ERROR [\d-]+ [\d:]+ \[[^\]]*\]\s*", "", line) for line in lines if line]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b.*:", line)]
    # What comes later is often the complaint that something has failed before.
    later = r"(trace|cause) \(?above|ChildFailedError|CalledProcessError"
    causes = [line for line in errors if not re.search(later, line)]
    return shortened(printable((causes or errors or lines or ["it wrote nothing"])[-1]), 300)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
