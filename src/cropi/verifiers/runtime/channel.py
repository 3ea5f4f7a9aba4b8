"""Messages between judge and worker: pickles, each led by its length, over a pipe."""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")


def frame(message: Any) -> bytes:
    """Return a message as bytes."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte. Raises BrokenPipeError if the other side is gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_message(descriptor: int) -> Any:
    """Wait for one message. Raises EOFError if the other side is gone."""
    (length,) = _LENGTH.unpack(_read_exactly(descriptor, _LENGTH.size))
    return pickle.loads(_read_exactly(descriptor, length))


def _read_exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


class MessageReader:
    """Collects bytes as they arrive and gives out whole messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def read(self, descriptor: int) -> list[Any]:
        """Read what is there (wait if nothing is) and return the messages that are complete.

        Raises EOFError if the other side is gone.
        """
        part = os.read(descriptor, 1 << 16)
        if not part:
            raise EOFError
        self._bytes += part
        return list(iter(self._take, None))

    def _take(self) -> Any:
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        message = pickle.loads(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return message
