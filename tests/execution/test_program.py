"""A program that we start ends with us, with all its children, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cropi.execution import Program
from support.process_checks import alive, eventually

PARENT_AND_CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
# A shell's background jobs, and what they start, ignore the interrupt: here it is taken as usual.
HOLDS = """
import signal, sys, time
from pathlib import Path
from cropi.execution import Program
signal.signal(signal.SIGINT, signal.default_int_handler)
program = Program([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
time.sleep(600)
"""


def pids(log: Path) -> list[int]:
    """The program's process and its child, as it wrote them down."""
    eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    return [int(pid) for pid in log.read_text().split()[1:]]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_us(number: signal.Signals, tmp_path: Path) -> None:
    log, environment = tmp_path / "log", {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDS, PARENT_AND_CHILD, str(log)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    started = pids(log)
    assert len(started) == 2
    assert all(map(alive, started))
    process.send_signal(number)
    process.wait(60)
    eventually(lambda: not any(map(alive, started)))


def test_it_ends_when_it_is_stopped_and_when_it_is_forgotten(tmp_path: Path) -> None:
    for end in (Program.stop, lambda _: None):
        log = tmp_path / f"log-{end is Program.stop}"
        program = Program([sys.executable, "-c", PARENT_AND_CHILD], log)
        started = pids(log)
        assert program.exit_code is None
        end(program)
        del program
        eventually(lambda started=started: not any(map(alive, started)))


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell children")
def test_it_ends_when_its_guard_is_killed(tmp_path: Path) -> None:
    program = Program(
        [sys.executable, "-c", "print('pids', flush=True); import time; time.sleep(600)"],
        tmp_path / "log",
    )
    pids(tmp_path / "log")
    guard = program._guard.pid
    (child,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    program._guard.kill()
    eventually(lambda: not alive(int(child)))


def test_its_end_is_known_with_its_exit_code(tmp_path: Path) -> None:
    program = Program([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log")
    eventually(lambda: program.exit_code is not None)
    assert program.exit_code == 7
    missing = Program(["/nowhere/python"], tmp_path / "missing")
    eventually(lambda: missing.exit_code is not None)
    assert missing.exit_code == 127
    assert "/nowhere/python" in (tmp_path / "missing").read_text()
