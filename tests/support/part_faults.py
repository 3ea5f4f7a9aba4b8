"""Parts for the runner of `benchmarks/gpu_check.py` that end in every way there is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def good(place: Any) -> Iterator[tuple[str, Any]]:
    yield "half", 0.5
    yield "half", 0.25
    yield "unknown", float("nan")


def raises(place: Any) -> Iterator[tuple[str, Any]]:
    yield "before", 1
    raise MemoryError("out of it")


def dies(place: Any) -> Iterator[tuple[str, Any]]:
    yield "before", 1
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(place: Any) -> Iterator[tuple[str, Any]]:
    """With a process of its own that would go on for ever."""
    child = subprocess.Popen(["sleep", "600"])
    place.folder.mkdir(parents=True, exist_ok=True)
    Path(place.folder, "child").write_text(str(child.pid))
    yield "before", 1
    time.sleep(600)


def refuses(place: Any) -> Iterator[tuple[str, Any]]:
    from gpu_parts.place import NotHereError

    raise NotHereError("no such device")
    yield
