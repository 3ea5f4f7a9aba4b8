"""Settings of all tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.command_line import Command, in_process
from support.object_stores import bucket_in_memory

# Before torch is imported, and for the processes that tests start: tiny matrices lose more to
# waiting threads than they gain, and threads that spin starve everything else on a small machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# No test fails for being slow: on a busy machine that says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage() -> None:
    """Spare the many collections of the training libraries a walk through all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """One thread for every module, whatever the module before it has set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def cropi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command line in this process."""
    return in_process(monkeypatch, capsys)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a bucket in memory, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with bucket_in_memory() as url:
        yield url


def pytest_sessionfinish() -> None:
    """Let the interpreter clean up what `frozen_garbage` kept from it."""
    gc.unfreeze()
