"""Messages between judge and worker over a pipe, each preceded by its length.

The judge sends pickles. A worker answers with JSON: it runs the user's code, which could write to
the pipe, and unpickling bytes can run any code in the judge's process.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")


def job_frame(message: Any) -> bytes:
    """Return the bytes of a judge's message."""
    return _frame(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def reply_frame(message: Any) -> bytes:
    """Return the bytes of a worker's message, which must be JSON values."""
    return _frame(json.dumps(message).encode())


def _frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte. Raises BrokenPipeError if the other side is gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_job_message(descriptor: int) -> Any:
    """Wait for one message of the judge. Raises EOFError if the judge is gone."""
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
    """Collects a worker's bytes as they arrive and returns whole messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def read(self, descriptor: int) -> list[Any]:
        """Read the bytes that have arrived, or wait for some; return the complete messages.

        Raises EOFError if the worker is gone, and ValueError if its bytes are not JSON.
        """
        part = os.read(descriptor, 1 << 16)
        if not part:
            raise EOFError
        self._bytes += part
        return list(iter(self._next_message, None))

    def _next_message(self) -> Any:
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        message = json.loads(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return message
