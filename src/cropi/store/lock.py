"""One process at a time in a folder, or on an output: two would overwrite each other's files.

The lock is the operating system's, so that it is released when a process is killed. Reading, as the
report does, needs no lock.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cropi.errors import InputError
from cropi.store.files import cannot_write, require_local

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
    require_local(folder)
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
        _lock(
            file.fileno(),
            folder,
            f"another process is working in {folder}; wait until it has finished or stop it, or "
            "choose another name, e.g. name=my-run",
        )
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


@contextmanager
def exclusive_output(output: Path) -> Iterator[None]:
    """Keep other processes from writing a file or folder, unless its folder is locked anyway.

    Raises InputError if another process is writing it, or if it cannot be written.
    """
    require_local(output)
    path = output.expanduser().absolute()
    if _held.isdisjoint((path, *path.parents)):
        with exclusive_file(output):
            yield
    else:
        yield


@contextmanager
def exclusive_file(output: Path) -> Iterator[None]:
    """Keep other processes from writing a file or folder, by a lock beside it that is removed."""
    path = output.expanduser().absolute()
    lock = path.with_name(path.name + LOCK)
    handle = _locked_handle(lock, output)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        lock.unlink(missing_ok=True)  # before it is released: who waits for it takes a new one
        os.close(handle)


def _locked_handle(lock: Path, output: Path) -> int:
    """Open and lock a file; again if its owner has removed it meanwhile."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(output, error) from error
        try:
            _lock(
                handle,
                output,
                f"another process is writing {output}; wait until it has finished or stop it, or "
                "give another path",
            )
            if _is_at(handle, lock):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, place: Path, refusal: str) -> None:
    """Take the lock, which lasts until the file is closed. Raises InputError with `refusal`."""
    end = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise InputError(refusal) from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCK_SUPPORT:
                raise cannot_write(place, error) from error
            warnings.warn(
                f"the file system of {place} does not support locks; make sure that no other "
                "process writes there",
                stacklevel=3,
            )
            return
        else:
            return
