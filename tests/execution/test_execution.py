"""Work units: each is reported once and by name, in every executor, whatever happens to others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cropi.errors import InputError
from cropi.execution import (
    Executor,
    Finished,
    Inline,
    Processes,
    WorkUnit,
    require_bearable,
    run_all,
    run_units,
    usable_cores,
)
from cropi.execution.units import GivenUpError
from support.process_checks import alive

linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads Linux's /proc")


def append(file: Path, text: str, seconds: float = 0.0) -> str:
    """Note that a unit ran, in a file that processes share."""
    time.sleep(seconds)
    with file.open("a") as handle:
        handle.write(f"{text}\n")
    return text.upper()


def fail(error: Exception) -> None:
    raise error


class Unrestorable(Exception):  # noqa: N818
    """Pickles, but cannot be restored: its constructor wants two arguments."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")


def fail_unrestorably() -> None:
    raise Unrestorable("here", "why")


def gpu_when_both_run(folder: Path, name: str) -> str | None:
    """Wait for the other worker, so that none can take both units."""
    (folder / name).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(params=[Inline, lambda: Processes(2, 1)], ids=["inline", "processes"])
def executor(request: pytest.FixtureRequest) -> Executor:
    made: Executor = request.param()
    return made


def outcomes(executor: Executor, *units: WorkUnit) -> dict[str, Finished]:
    with executor:
        finished = list(run_units(executor, units))
    assert len(finished) == len(units)
    return {each.unit.name: each for each in finished}


def test_every_unit_is_reported_once_with_its_own_value(executor: Executor, tmp_path: Path) -> None:
    names = [f"unit {n}" for n in range(5)]
    units = [WorkUnit(name, append, (tmp_path / "log", name)) for name in names]
    finished = outcomes(executor, *units)
    assert {name: f.result() for name, f in finished.items()} == {n: n.upper() for n in names}
    assert sorted((tmp_path / "log").read_text().splitlines()) == names
    assert all(f.succeeded and f.seconds >= 0 for f in finished.values())


def test_units_of_different_kinds_run_side_by_side(executor: Executor, tmp_path: Path) -> None:
    finished = outcomes(
        executor,
        WorkUnit("write", append, (tmp_path / "log", "x"), output=tmp_path / "log"),
        WorkUnit("compute", divmod, (7, 3)),
    )
    assert (finished["write"].result(), finished["compute"].result()) == ("X", (2, 1))


def test_a_failure_is_reported_by_name_and_stops_no_other_unit(executor: Executor) -> None:
    finished = outcomes(
        executor,
        WorkUnit("bad input", fail, (InputError("no such set"),)),
        WorkUnit("defect", fail, (ValueError("odd"),)),
        WorkUnit("unrestorable", fail_unrestorably),
        WorkUnit("good", divmod, (7, 3)),
    )
    assert finished["good"].result() == (2, 1)
    with pytest.raises(InputError, match="no such set"):
        finished["bad input"].result()
    assert isinstance(finished["defect"].error, ValueError)
    assert "here: why" in str(finished["unrestorable"].error)
    assert not finished["defect"].succeeded


def test_a_unit_that_leaves_no_output_has_failed(executor: Executor, tmp_path: Path) -> None:
    unit = WorkUnit("empty", divmod, (7, 3), output=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="empty ended without leaving"):
        outcomes(executor, unit)["empty"].result()


def test_a_unit_starts_after_its_prerequisites_and_others_do_not_wait(
    executor: Executor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    outcomes(
        executor,
        WorkUnit("shared", append, (log, "shared", 0.2)),
        WorkUnit("other", append, (log, "other")),
        WorkUnit("first", append, (log, "first"), after=("shared",)),
        WorkUnit("last", append, (log, "last"), after=("first", "other")),
    )
    order = log.read_text().splitlines()
    assert order.index("shared") < order.index("first") < order.index("last")
    assert order.index("other") < order.index("last")


def test_what_follows_a_failure_is_skipped_and_named(executor: Executor, tmp_path: Path) -> None:
    finished = outcomes(
        executor,
        WorkUnit("shared", fail, (ValueError("odd"),)),
        WorkUnit("run", append, (tmp_path / "log", "run"), after=("shared",)),
        WorkUnit("page", append, (tmp_path / "log", "page"), after=("run",)),
        WorkUnit("other", append, (tmp_path / "log", "other")),
    )
    assert (finished["run"].skipped_after, finished["page"].skipped_after) == ("shared", "run")
    assert (tmp_path / "log").read_text() == "other\n"


def test_units_end_in_the_order_of_finish(tmp_path: Path) -> None:
    with Processes(2, 1) as executor:
        for name in "ab":
            executor.submit(WorkUnit(name, gpu_when_both_run, (tmp_path, name)))
        assert len(list(executor.completed())) == 2  # both workers are there now
        executor.submit(WorkUnit("slow", time.sleep, (1.0,)))
        executor.submit(WorkUnit("fast", divmod, (7, 3)))
        assert [f.unit.name for f in executor.completed()] == ["fast", "slow"]


def test_inline_keeps_the_order_of_submission(tmp_path: Path) -> None:
    executor = Inline()
    for name in "cab":
        executor.submit(WorkUnit(name, append, (tmp_path / "log", name)))
    assert not (tmp_path / "log").exists()
    assert [f.unit.name for f in executor.completed()] == ["c", "a", "b"]


def test_an_interrupt_is_raised_and_not_taken_for_a_failed_unit() -> None:
    with Inline() as executor:
        executor.submit(WorkUnit("interrupted", interrupt))
        with pytest.raises(KeyboardInterrupt):
            list(executor.completed())


@linux
def test_an_interrupt_ends_the_workers() -> None:
    def interrupted() -> None:
        with Processes(1, 1) as executor:
            executor.submit(WorkUnit("pid", os.getpid))
            pids.append(next(executor.completed()).result())
            executor.submit(WorkUnit("long", time.sleep, (600,)))
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    while alive(pids[0]):
        time.sleep(0.02)


def test_a_worker_that_dies_fails_its_unit_alone_and_is_replaced(tmp_path: Path) -> None:
    finished = outcomes(
        Processes(2, 1),
        WorkUnit("ends", os._exit, (3,)),
        WorkUnit("slow", append, (tmp_path / "log", "slow", 1.0)),
        WorkUnit("killed", kill_oneself),
        WorkUnit("waits", append, (tmp_path / "log", "waits"), after=("killed",)),
        WorkUnit("later", append, (tmp_path / "log", "later")),
    )
    with pytest.raises(GivenUpError, match=r"ends is not finished: .* \(exit code 3\)"):
        finished["ends"].result()
    with pytest.raises(GivenUpError, match=r"killed is not finished: .* memory ran out"):
        finished["killed"].result()
    assert finished["waits"].skipped_after == "killed"
    assert sorted((tmp_path / "log").read_text().split()) == ["later", "slow"]


def test_what_no_worker_could_finish_is_named_after_the_rest_is_done(tmp_path: Path) -> None:
    units = [
        WorkUnit("ends", os._exit, (3,)),
        *(WorkUnit(name, append, (tmp_path / "log", name)) for name in "ab"),
    ]
    with Processes(1, 1) as executor:
        results = run_all(executor, units, "chunk", "try again")
        assert [next(results).unit.name, next(results).unit.name] == ["a", "b"]
        with pytest.raises(InputError, match=r"1 of 3 chunks .* ends is not .*; try again"):
            next(results)


ORPHAN = """
import os, time
from cropi.execution import Processes, WorkUnit
if __name__ == "__main__":
    with Processes(1, 1) as executor:
        executor.submit(WorkUnit("pid", os.getpid))
        print(next(executor.completed()).result(), flush=True)
        executor.submit(WorkUnit("long", time.sleep, (600,)))
        list(executor.completed())
"""


@linux
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    while alive(worker):
        time.sleep(0.02)


def test_workers_have_their_threads_and_leave_no_trace_in_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is started here afterwards would compute with other threads, so other last bits."""
    for before in (None, "5"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if before:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        unit = WorkUnit("threads", os.getenv, ("OMP_NUM_THREADS",))
        assert outcomes(Processes(2, 3), unit)["threads"].result() == "3"
        assert os.environ.get("OMP_NUM_THREADS") == before


def test_workers_have_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    units = [WorkUnit(name, gpu_when_both_run, (tmp_path, name)) for name in "ab"]
    finished = outcomes(Processes(2, 1), *units)
    assert {f.result() for f in finished.values()} == {"3", "5"}


def test_the_usable_cores_are_known_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


def test_processes_beyond_what_the_cores_bear_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cropi.execution.processes.usable_cores", lambda: 2)
    require_bearable(8, "--jobs")
    with pytest.raises(InputError, match=r"--jobs 9 is more than .* 2 cores .* at most 8"):
        require_bearable(9, "--jobs")


def test_units_that_share_a_name_or_wait_for_nothing_known_are_a_defect() -> None:
    unit = WorkUnit("a", divmod, (7, 3))
    with pytest.raises(AssertionError, match="share a name"):
        list(run_units(Inline(), [unit, unit]))
    with pytest.raises(AssertionError, match="comes before"):
        list(run_units(Inline(), [WorkUnit("a", divmod, (7, 3), after=("b",))]))
