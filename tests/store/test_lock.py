"""One process at a time in a run's directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.store import lock
from cropi.store.files import write_table
from cropi.store.lock import exclusive_lock, exclusive_output
from cropi.study.runner import run_study
from cropi.study.study_plan import StudyPlan
from support.command_line import Command
from support.tiny_runs import tiny_config, write_config

HOLDER = """
import sys
from pathlib import Path
from cropi.store import lock
with getattr(lock, sys.argv[2])(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path, how: str = "exclusive_lock") -> Iterator[subprocess.Popen[str]]:
    """Another process at work in `folder`, or on an output."""
    command = [sys.executable, "-c", HOLDER, str(folder), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_made_held_and_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    for _ in range(2):
        with exclusive_lock(folder):
            assert folder.is_dir()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_S", 0.1)


def test_a_process_may_enter_again_and_holds_until_it_leaves_last(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path):
        with exclusive_lock(tmp_path / "." / ""):
            pass
        command = [sys.executable, "-c", HOLDER, str(tmp_path), "exclusive_lock"]
        refused = subprocess.run(command, input="", capture_output=True, text=True, check=False)
        assert "another process is working" in refused.stderr
        assert refused.stdout == ""


def test_a_folder_that_is_given_back_in_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_S", 60.0)
    with held_by_another(tmp_path) as process:
        monkeypatch.setattr(lock.time, "sleep", lambda _: (process.kill(), process.wait()))
        with exclusive_lock(tmp_path):
            assert process.returncode is not None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unable(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", unable)
    with pytest.warns(UserWarning, match="does not support locks"), exclusive_lock(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()


def test_a_disk_that_fails_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", broken)
    with (
        pytest.raises(InputError, match=r"cannot write .*Input/output error"),
        exclusive_lock(tmp_path),
    ):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        with (
            pytest.raises(InputError, match="another process is working in"),
            exclusive_lock(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)  # which nobody can clean up after
        process.wait()
        with exclusive_lock(tmp_path):
            pass


def test_a_run_and_a_study_keep_out_of_anothers_directory(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    plan = StudyPlan.of(config, ["random"], [0])
    for folder, start in (
        (config.directory, lambda: run(config)),
        (plan.root, lambda: run_study(plan)),
    ):
        with held_by_another(folder), pytest.raises(InputError, match="choose another name"):
            start()
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"), exclusive_lock(tmp_path / "file"):
        pass


def test_a_refused_comparison_draws_nothing(tmp_path: Path, cropi: Command) -> None:
    folder = StudyPlan.of(tiny_config(tmp_path), ["random"], [0]).root
    (folder / "cells").mkdir(parents=True)
    with held_by_another(folder):
        command = cropi("compare", write_config(tmp_path), "--seeds", "0")
    command.refused("another process is working")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "cells"]


def test_an_output_has_one_writer_and_its_lock_leaves_with_it(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "s.parquet", "exclusive_output"):
        with (
            pytest.raises(InputError, match=r"another process is writing .*s\.parquet"),
            exclusive_output(tmp_path / "s.parquet"),
        ):
            raise AssertionError("two processes write one file")
        with exclusive_output(tmp_path / "other.parquet"):
            pass
    with exclusive_output(tmp_path / "s.parquet"), exclusive_output(tmp_path / "s.parquet"):
        assert [path.name for path in tmp_path.iterdir()] == ["s.parquet.lock"]
    assert not list(tmp_path.iterdir())
    with exclusive_lock(tmp_path), exclusive_output(tmp_path / "s.parquet"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


COMMANDS = {
    "rollout": ["--model", "pocket", "--prompts", "p.jsonl", "--verifier", "exact"],
    "score": ["--model", "pocket", "--rollouts", "none.parquet", "--target", "v=none.parquet"],
    "select": ["--scores", "none.parquet"],
    "train": ["--model", "pocket", "--prompts", "p.jsonl", "--selection", "chosen.parquet"],
    "evaluate": ["--model", "pocket", "--set", "s=p.jsonl", "--verifier", "exact"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_writer_of_an_output_is_refused_in_one_sentence(
    tmp_path: Path, cropi: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt_id": "p", "prompt": "s ab=", "answer": "ab"}\n')
    write_table(Path("chosen.parquet"), pa.table({"prompt_id": ["p"]}))
    with held_by_another(Path("out"), "exclusive_output"):
        cropi(command, *COMMANDS[command], "--out", "out").refused("another process", "out")
    assert not Path("out").exists()
