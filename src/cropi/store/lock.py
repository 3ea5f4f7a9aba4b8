"""One process at a time in a folder: two runs in one directory would overwrite each other's files.

The lock is the operating system's, so that it is released when a process is killed. Reading, as the
report does, needs no lock.
"""

from __future__ import annotations

import errno
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cropi.errors import InputError
from cropi.store.files import cannot_write

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
LOCK_TIMEOUT_S = 2.0
"""Seconds to wait for the lock: workers of a killed study take a moment to end."""

_NO_LOCK_SUPPORT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Error numbers of file systems that do not support locks."""
_held: set[Path] = set()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Create `folder` and keep other processes from working in it; may be nested in a process.

    Warns, and goes ahead, if the file system does not support locks. Raises InputError if the
    folder cannot be written, or if another process is working there.
    """
    path = folder.expanduser().absolute()
    if path in _held:
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        _lock(file.fileno(), folder)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def _lock(handle: int, folder: Path) -> None:
    """Take the lock, which lasts until the file is closed."""
    end = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise InputError(
                    f"another process is working in {folder}; wait until it has finished or stop "
                    "it, or choose another name, e.g. name=my-run"
                ) from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCK_SUPPORT:
                raise cannot_write(folder, error) from error
            warnings.warn(
                f"the file system of {folder} does not support locks; make sure that no other "
                "process uses this folder",
                stacklevel=3,
            )
            return
        else:
            return
