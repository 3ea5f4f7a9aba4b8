"""A lock in an object store, where there are neither locks nor renames: a lease that is renewed.

Leases are numbered objects. Whoever creates the next number, on the condition that it does not
exist (If-None-Match on S3, a generation on GCS), is the holder, and rewrites the object every few
seconds. Who comes later watches it: one that changes has a living holder; one that does not for the
length of a lease has none, by the watcher's own clock, so that clocks need not agree.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from cropi.errors import InputError
from cropi.store.object_store import ObjectStore

LEASE_S = 60.0
"""How long a holder may be silent."""
BEAT_S = 15.0
"""How often it renews the lease."""
FOLDER = ".lease"


class Lease:
    """The lease of what a URL names, taken by `with`.

    `owner` is a name that this place alone has, and that one living process at a time can use: a
    lease that it left behind is taken over at once.
    """

    def __init__(self, store: ObjectStore, owner: str) -> None:
        self.store, self.owner = store, owner
        self._number = 0
        self._beats = 0
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease. Raises InputError, naming the holder, if there is a living one."""
        while True:
            last = self._last()
            content = self.store.read(self._path(last)) if last else None
            if content is not None and not self._is_free(content):
                self._watch(last, content)
            if self.store.create(self._path(last + 1), self._content()):
                break
        self._number = last + 1
        self._require_condition()
        self.store.remove([self._path(number) for number in range(max(1, last - 2), last + 1)])
        self._renewing.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lease back; a store that does not answer lets it run out."""
        self.stop_renewing()
        try:
            if not self._is_lost():
                self.store.write(self._path(self._number), self._content(released=True))
        except InputError as failure:
            warnings.warn(f"{failure}; the lock runs out by itself", stacklevel=2)

    def stop_renewing(self) -> None:
        """Leave the lease to run out."""
        self._stop.set()
        self._renewing.join()

    def require_held(self) -> None:
        """Raise InputError if another process has taken over, as from one that was asleep."""
        if self._is_lost():
            raise InputError(
                f"another process has taken over {self.store.url} while this one did not answer; "
                "wait until it has finished, or stop it and give the command again"
            )

    def _is_lost(self) -> bool:
        return self._last() > self._number

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beats += 1
            try:
                if self._is_lost():
                    return
                self.store.write(self._path(self._number), self._content())
            except InputError:
                continue  # the next beat may get through

    def _watch(self, number: int, content: bytes) -> None:
        """Return when a lease has not changed for as long as it lasts, or was given back.

        Raises InputError if it is renewed meanwhile.
        """
        place = f"{self.store.url} is locked by {_holder(content)}"
        warnings.warn(f"{place}; waiting {LEASE_S:.0f} s for a sign of life", stacklevel=4)
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            time.sleep(LEASE_S / 20)
            now = self.store.read(self._path(number))
            if now is None or self._is_free(now):
                return
            if now != content:
                raise InputError(
                    f"{place}, which is at work; wait until it has finished or stop it, or choose "
                    "another name, e.g. name=my-run"
                )

    def _last(self) -> int:
        """The number of the newest lease; 0 if there is none."""
        names = [file.path.rpartition("/")[2] for file in self.store.under(FOLDER)]
        numbers = [int(name.removesuffix(".json")) for name in names if name[:-5].isdecimal()]
        return max(numbers, default=0)

    def _is_free(self, content: bytes) -> bool:
        """Whether a lease was given back, or left by a process that had this place before."""
        values = _values(content)
        return bool(values.get("released")) or values.get("owner") == self.owner

    def _require_condition(self) -> None:
        """Raise InputError for a server that lets two processes create the same object."""
        if self.store.create(self._path(self._number), b"{}"):
            self.store.remove([self._path(self._number)])
            raise InputError(
                f"{self.store.url} cannot be locked: its server writes an object over another one "
                "though asked not to (If-None-Match); use a newer server or a local directory"
            )

    def _path(self, number: int) -> str:
        return self.store.at(f"{FOLDER}/{number:08}.json")

    def _content(self, released: bool = False) -> bytes:
        values = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beats": self._beats,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "released": released,
        }
        return json.dumps(values).encode()


def _values(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _holder(content: bytes) -> str:
    values = _values(content)
    who = f"process {values.get('process')} on {values.get('host')}"
    return f"{who} (last sign of life {values.get('time')} by its clock)"
