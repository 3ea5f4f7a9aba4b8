"""One process at a time in a folder: two runs in one directory would overwrite each other's files.

The lock is the operating system's, so that a process that is killed gives it back. Reading, as the
report does, needs none.
"""

from __future__ import annotations

import errno
import fcntl
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cropi.errors import InputError
from cropi.store.files import cannot_write

LOCK = ".lock"
PATIENCE = 2.0
"""Seconds that a folder is waited for: workers of a killed study take a moment to end."""

_UNABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that know no locks."""
_held: set[Path] = set()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Create `folder` and keep other processes from working in it; may be nested in a process.

    A file system without locks is warned of and worked in without. Raises InputError if the folder
    cannot be written, or if another process is at work there.
    """
    place = folder.expanduser().absolute()
    if place in _held:
        yield
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / LOCK).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        _lock(file.fileno(), folder)
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


def _lock(handle: int, folder: Path) -> None:
    """Take the lock, which lasts until the file is closed."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise InputError(
                    f"another process is at work in {folder}; wait until it has finished or stop "
                    "it, or choose another name, e.g. name=my-run"
                ) from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise cannot_write(folder, error) from error
            warnings.warn(
                f"the file system of {folder} knows no locks: see to it that no second process "
                "works there",
                stacklevel=3,
            )
            return
        else:
            return
