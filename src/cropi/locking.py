"""One process at a time in a folder: two runs in one directory would overwrite each other's files.

The lock is the operating system's, so that a process that is killed gives it back. Reading, as the
report does, needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cropi.artifacts import unwritable
from cropi.errors import InputError

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create `folder` and keep other processes from working in it.

    Raises InputError if it cannot be written, or if another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process is at work in {folder}; wait until it has finished or stop it, or "
            "choose another name, e.g. name=my-run"
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()
