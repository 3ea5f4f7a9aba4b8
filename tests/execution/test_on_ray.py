"""Units on Ray: each ends once and by name, whatever becomes of the workers.

Ray is started once, for all tests of this file.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cropi.errors import InputError
from cropi.execution import Finished, WorkUnit, executor_for, run_units
from cropi.execution.on_ray import ATTEMPTS, RayWorkers
from cropi.execution.settings import RaySettings, ScaleConfig
from cropi.execution.units import GivenUpError

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    with RayWorkers(4):
        yield
    ray.shutdown()


def outcomes(*units: WorkUnit, workers: int = 2, late_after: float = 30.0) -> dict[str, Finished]:
    with RayWorkers(workers, late_after=late_after) as executor:
        finished = list(run_units(executor, units))
    assert len(finished) == len(units)
    return {each.unit.name: each for each in finished}


def test_idle_workers_make_room_for_those_of_others() -> None:
    first, second = RayWorkers(2), RayWorkers(2)
    for executor, other in ((first, second), (second, first), (first, second)):
        with executor:
            assert other.workers == 0
            list(run_units(executor, [WorkUnit("a", divmod, (7, 3))]))
        assert executor.workers == 1


def note(file: Path, text: str, error: Exception | None = None) -> str:
    """Leave a line in a file that all workers see, then fail if there is an error."""
    with file.open("a") as handle:
        handle.write(f"{text}\n")
    if error is not None:
        raise error
    return text.upper()


def die_at_first(folder: Path) -> str:
    """Kill the worker the first time, as the system does where memory runs out."""
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def dawdle_at_first(folder: Path) -> str:
    if not (folder / "began").exists():
        (folder / "began").touch()
        time.sleep(60)
    return "in time"


class Counting:
    """What units share, which knows in how many of them it has been."""

    def __init__(self) -> None:
        self.seen = 0

    def __getstate__(self) -> dict[str, int]:
        return {"seen": 0}


def place(shared: Counting, warning: str) -> tuple[int, int, str | None]:
    shared.seen += 1
    warnings.warn(warning, stacklevel=1)
    time.sleep(0.2)
    return os.getpid(), shared.seen, os.environ.get("OMP_NUM_THREADS")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Finished], list[str]]:
    """Units of every kind in one call, and what was warned of."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.warns(UserWarning, match="trying again") as caught:
        finished = outcomes(
            WorkUnit("good", note, (folder / "log", "good"), output=folder / "log"),
            WorkUnit("bad input", note, (folder / "tries", "a", InputError("no such set"))),
            WorkUnit("defect", note, (folder / "tries", "b", ValueError("odd"))),
            WorkUnit("kills", os._exit, (3,)),
            WorkUnit("unlucky", die_at_first, (folder,)),
            WorkUnit("after", note, (folder / "log", "after"), after=("good",)),
            WorkUnit("never", note, (folder / "log", "never"), after=("kills",)),
            WorkUnit("elsewhere", divmod, (7, 3), output=folder / "absent"),
        )
    return folder, finished, [str(each.message) for each in caught]


def test_what_succeeds_has_its_value_and_order(
    mixed: tuple[Path, dict[str, Finished], list[str]],
) -> None:
    folder, finished, _ = mixed
    assert (finished["good"].result(), finished["after"].result()) == ("GOOD", "AFTER")
    assert (folder / "log").read_text().split() == ["good", "after"]
    assert finished["never"].skipped_after == "kills"


def test_bad_input_is_final_and_other_failures_are_tried_again_and_named(
    mixed: tuple[Path, dict[str, Finished], list[str]],
) -> None:
    folder, finished, _ = mixed
    with pytest.raises(InputError, match="no such set"):
        finished["bad input"].result()
    with pytest.raises(
        GivenUpError,
        match=r"defect was tried 3 times .* ValueError at .*test_on_ray.py, line \d+: odd",
    ):
        finished["defect"].result()
    assert sorted((folder / "tries").read_text().split()) == ["a", *["b"] * ATTEMPTS]
    with pytest.raises(GivenUpError, match=r"elsewhere .* without leaving"):
        finished["elsewhere"].result()


def test_a_unit_whose_worker_dies_is_run_again_and_given_up_if_it_always_dies(
    mixed: tuple[Path, dict[str, Finished], list[str]],
) -> None:
    _, finished, warned = mixed
    assert finished["unlucky"].result() == "alive"
    assert any(text.startswith("unlucky: its worker died") for text in warned)
    with pytest.raises(GivenUpError, match=r"kills was tried 3 times .* its worker died"):
        finished["kills"].result()


def test_a_worker_unpacks_what_units_share_once_and_passes_warnings_on() -> None:
    shared = Counting()
    units = [WorkUnit(f"unit {n}", place, ("note this",), shared=shared) for n in range(6)]
    with pytest.warns(UserWarning, match="unit 5: note this"):
        finished = outcomes(*units)
    values = [each.result() for each in finished.values()]
    pids = [pid for pid, _, _ in values]
    assert os.getpid() not in pids
    assert len(set(pids)) == 2
    assert sorted(seen for _, seen, _ in values) == sorted(
        n + 1 for pid in set(pids) for n in range(pids.count(pid))
    )
    assert {threads for _, _, threads in values} == {"1"}
    assert shared.seen == 0


def test_a_unit_that_is_late_is_run_a_second_time_and_counts_once(tmp_path: Path) -> None:
    finished = outcomes(
        WorkUnit("quick", divmod, (7, 3)),
        WorkUnit("late", dawdle_at_first, (tmp_path,), speculative=True),
        late_after=1.0,
    )
    assert finished["late"].result() == "in time"


def test_a_worker_that_no_node_has_room_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"scale\.ray\.gpus 1: no node of the cluster"):
        RayWorkers(1, gpus=1).__enter__()
    with pytest.raises(InputError, match=r"scale\.ray\.cpus 99: .* the largest has"):
        RayWorkers(1, cpus=99).__enter__()


def test_only_the_settings_decide_where_units_run() -> None:
    assert executor_for(ScaleConfig()) is None
    assert isinstance(executor_for(ScaleConfig(ray=RaySettings(workers=1))), RayWorkers)
