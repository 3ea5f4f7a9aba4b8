"""A run kept in an object store ends with the same files there, on whichever machines it ran."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cropi.errors import InputError
from cropi.store import lease, object_store
from cropi.store.lease import Lease
from cropi.store.mirror import exclusive_run, working_directory
from cropi.store.object_store import ObjectStore
from cropi.store.run_directory import RunDirectory
from support.kept_steps import STAGES, take_steps
from support.object_stores import bucket_in_memory

URL = "memory://bucket/runs"
ROOT = "/bucket/runs/run"
WEIGHTS = "arms/arm/stages/{}/policy/model.safetensors"


class Killed(BaseException):
    """What no part of a run may catch."""


class Machines:
    """Machines that share nothing but the store."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.count = 0

    def another(self) -> int:
        """Go on with a new one; its number."""
        self.count += 1
        self.take(self.count)
        return self.count

    def take(self, number: int) -> None:
        """Go on with one that was there before."""
        self._monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / f"machine-{number}"))


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setattr(lease, "LEASE_S", 0.1)
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    monkeypatch.setattr(object_store, "LONGEST_WAIT_S", 0.01)
    at = Machines(tmp_path, monkeypatch)
    at.another()
    with bucket_in_memory():
        yield at


def stored_files() -> dict[str, bytes]:
    """The files of the run in the store, but for wall times and the lock."""
    memory = fsspec.filesystem("memory")
    names = [name for name in memory.find(ROOT) if ".lease" not in name]
    files = {name.removeprefix(f"{ROOT}/"): memory.cat_file(name) for name in names}
    files.pop("timings.jsonl", None)
    return files


def remove_from_store(name: str = "") -> None:
    fsspec.filesystem("memory").rm(f"{ROOT}/{name}".rstrip("/"), recursive=True)


@pytest.fixture
def expected(machines: Machines) -> dict[str, bytes]:
    """What an uninterrupted run leaves in the store, which is empty afterwards."""
    take_steps(URL)
    files = stored_files()
    remove_from_store()
    machines.another()
    return files


class Killer:
    """Kills the process instead of its n-th write to the store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        upload, remove, write = ObjectStore.upload, ObjectStore.remove, ObjectStore.write

        def counted_upload(store: ObjectStore, source: Path, path: str) -> None:
            self._count()
            upload(store, source, path)

        def counted_remove(store: ObjectStore, paths: list[str]) -> None:
            self._count(len(paths) if not any(".lease" in path for path in paths) else 0)
            remove(store, paths)

        def renewed(store: ObjectStore, path: str, content: bytes) -> None:
            if self.left > 0:  # the dead give no lease back
                write(store, path, content)

        monkeypatch.setattr(ObjectStore, "upload", counted_upload)
        monkeypatch.setattr(ObjectStore, "remove", counted_remove)
        monkeypatch.setattr(ObjectStore, "write", renewed)

    def _count(self, writes: int = 1) -> None:
        self.left -= writes
        if self.left <= 0:
            raise Killed


def test_a_run_killed_before_any_write_goes_on_elsewhere_with_the_same_files(
    machines: Machines, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(monkeypatch)
    for writes in range(1, 1000):
        remove_from_store() if stored_files() else None
        killer.left = writes
        try:
            take_steps(URL)
        except Killed:
            listed = [
                json.loads(line) for line in stored_files().get("artifacts.jsonl", b"").splitlines()
            ]
            assert {name for each in listed for name in each["files"]} <= set(stored_files())
        else:
            break
        machines.another()
        killer.left, made = 10_000, list[str]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the lease of the dead has to run out
            take_steps(URL, made)
        assert stored_files() == expected
        assert len(made) == 2 * STAGES - len(listed)
        machines.another()
    assert writes > 15


def test_a_finished_run_is_known_elsewhere_and_old_weights_wait_until_they_are_needed(
    machines: Machines, expected: dict[str, bytes]
) -> None:
    take_steps(URL)
    machines.another()
    made = list[str]()
    root = take_steps(URL, made)
    assert made == []
    assert [n for n in range(STAGES) if (root / WEIGHTS.format(n)).exists()] == [STAGES - 1]
    assert not RunDirectory(root).ledger.notes()
    assert (root / "timings.jsonl").read_text().count("\n") == 2 * STAGES
    remove_from_store(WEIGHTS.format(STAGES - 1))
    machines.another()
    take_steps(URL, made)
    assert made == [f"arms/arm/stages/{STAGES - 1}/policy"]
    assert stored_files() == expected


def test_an_object_that_is_not_what_is_listed_is_made_again(
    machines: Machines, expected: dict[str, bytes]
) -> None:
    take_steps(URL)
    name = f"{ROOT}/arms/arm/stages/1/scores.json"
    fsspec.filesystem("memory").pipe_file(name, b"torn")
    machines.another()
    made = list[str]()
    take_steps(URL, made)
    assert made == ["arms/arm/stages/1/scores.json"]
    assert stored_files() == expected


def test_a_machine_that_comes_back_takes_over_what_another_one_has_done(
    machines: Machines, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machines.another()
    with monkeypatch.context() as dying:
        killer = Killer(dying)
        killer.left = 9
        with pytest.raises(Killed):
            take_steps(URL)
    machines.another()
    with pytest.warns(UserWarning, match="waiting"):
        take_steps(URL)
    machines.take(first)
    made = list[str]()
    take_steps(URL, made)
    assert made == []
    assert stored_files() == expected


def test_a_run_that_was_removed_from_the_store_begins_again(machines: Machines) -> None:
    take_steps(URL)
    remove_from_store()
    made = list[str]()
    take_steps(URL, made)
    assert len(made) == 2 * STAGES


def test_a_store_that_fails_stops_no_run_and_loses_nothing(
    machines: Machines, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server says 500")

    made = list[str]()
    with monkeypatch.context() as failing:
        failing.setattr(type(memory), "put_file", fail)
        message = r"cannot write memory://.*has the whole run: give the command again"
        warned = pytest.warns(UserWarning, match="the run continues in")
        with warned, pytest.raises(InputError, match=message):
            take_steps(URL, made)
    assert len(made) == 2 * STAGES
    assert stored_files() == {}
    take_steps(URL, made)
    assert len(made) == 2 * STAGES
    assert stored_files() == expected


def test_files_that_are_forgotten_are_deleted_in_the_store(machines: Machines) -> None:
    take_steps(URL)
    machines.another()
    root = working_directory(URL) / "run"
    with exclusive_run(root, f"{URL}/run"):  # which has not fetched these weights
        directory = RunDirectory(root)
        policy = directory.stages("arm", 1)[0].policy
        weights = [f for f in directory.ledger.files(policy) if f.suffix == ".safetensors"]
        directory.ledger.forget_files(policy, weights)
    assert WEIGHTS.format(0) not in stored_files()
    assert WEIGHTS.format(1) in stored_files()
    machines.another()
    made = list[str]()
    take_steps(URL, made)
    assert made == []


def test_a_lease_is_refused_while_its_holder_lives(machines: Machines) -> None:
    store = ObjectStore("memory://bucket/run")
    message = r"memory://bucket/run is locked by process \d+ on .*which is at work"
    waits = pytest.warns(UserWarning, match="waiting .* for a sign of life")
    with Lease(store, "first"), waits, pytest.raises(InputError, match=message):
        Lease(store, "second").__enter__()
    with Lease(store, "second"):  # given back: no wait
        pass


def test_the_lease_of_a_dead_holder_runs_out_and_is_lost_to_it(machines: Machines) -> None:
    store = ObjectStore("memory://bucket/run")
    dead = Lease(store, "dead").__enter__()
    dead.stop_renewing()
    with pytest.warns(UserWarning, match="waiting"):
        third = Lease(store, "third").__enter__()
    third.require_held()
    with pytest.raises(InputError, match="another process has taken over"):
        dead.require_held()
    third.stop_renewing()
    with Lease(store, "third") as again:  # left by a process that had this place before: no wait
        again.require_held()


def test_a_store_that_ignores_conditions_cannot_be_locked(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    plain = type(memory).pipe_file

    def careless(path: str, value: bytes, mode: str = "overwrite") -> None:
        plain(memory, path, value)

    monkeypatch.setattr(memory, "pipe_file", careless)
    with pytest.raises(InputError, match="cannot be locked"):
        Lease(ObjectStore("memory://bucket/r"), "x").__enter__()
