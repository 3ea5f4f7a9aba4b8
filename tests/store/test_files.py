"""Artefacts appear whole or not at all, and know what they were made from."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.cached import is_current, stamp
from cropi.store.files import (
    atomic_folder,
    atomic_write,
    file_hash,
    read_jsonl,
    read_table,
    require_writable,
    table_metadata,
    write_json,
    write_jsonl,
    write_table,
)

# Characters at which str.splitlines ends a line, though JSON does not escape them.
SEPARATORS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \r"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def write_half(path: Path, failure: Exception) -> None:
    with atomic_write(path) as part:
        part.write_text("half")
        raise failure


def fill_half(folder: Path, failure: Exception) -> None:
    with atomic_folder(folder) as part:
        (part / "weights").write_text("half")
        raise failure


def test_an_exception_inside_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_half(tmp_path / "a.txt", KeyError())
    assert left_in(tmp_path) == []


def test_an_exception_inside_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path, KeyError())
    assert path.read_text() == "old"
    assert left_in(tmp_path) == ["a.txt"]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert left_in(tmp_path / "new") == ["a.txt"]


def test_a_value_that_cannot_be_written_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 1}, {("a", "tuple"): 2}])
    assert read_jsonl(path) == [{"a": 1}]
    assert left_in(tmp_path) == ["a.jsonl"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(KeyError):
        fill_half(folder, KeyError())
    assert left_in(tmp_path) == []
    with atomic_folder(folder) as part:
        (part / "sub").mkdir()
        (part / "sub" / "weights").write_text("one")
        assert not folder.exists()
    with pytest.raises(KeyError):
        fill_half(folder, KeyError())
    assert (folder / "sub" / "weights").read_text() == "one"
    with atomic_folder(folder) as part:
        (part / "other").write_text("two")
    assert left_in(tmp_path) == ["other", "policy"]


def test_what_a_killed_run_left_aside_is_not_taken_for_a_part_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "policy.part").mkdir()
    (tmp_path / "policy.part" / "stale").write_text("x")
    with atomic_folder(tmp_path / "policy") as part:
        (part / "fresh").write_text("y")
    assert left_in(tmp_path) == ["fresh", "policy"]


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_place_under_a_file_is_an_input_error(tmp_path: Path, write) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file/a\.json: .*file is not a dir"):
        write(tmp_path / "file" / "a.json", [])
    with (
        pytest.raises(InputError, match=r"cannot write .*/sub: .*file is not a directory"),
        atomic_folder(tmp_path / "file" / "sub"),
    ):
        pass


def test_a_name_that_is_too_long_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / ("x" * 300), [])


def test_a_directory_in_the_place_of_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "taken", [])
    assert left_in(tmp_path) == ["taken"]


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"):
        write_half(tmp_path / "a", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert left_in(tmp_path) == []


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    rows = [{"text": SEPARATORS}, {"text": "line\nbreak"}, {"größe": "😀"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cropi.store.files import *; "
        "path = Path(sys.argv[1]); write_json(path, ['\\u2028gr\\xf6\\xdfe']); "
        "write_jsonl(path, [{'a': 'gr\\xf6\\xdfe'}]); print(len(read_jsonl(path)))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", program, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "größe" in (tmp_path / "a").read_text(encoding="utf-8")


def test_fingerprints_are_the_same_on_every_machine_and_in_every_process() -> None:
    value = {"b": [1, 2.5, None], "a": {"z": True, "ü": "x"}}
    assert fingerprint(value) == fingerprint({"a": {"ü": "x", "z": True}, "b": [1, 2.5, None]})
    assert fingerprint("a", 1, Path("x/y")) == "17047a2a4fbb5ac2"


@pytest.mark.parametrize("other", [("a", "2"), ("a2",), ("a", 2, None), ("b", 2)])
def test_different_values_have_different_fingerprints(other: tuple) -> None:
    assert fingerprint("a", 2) != fingerprint(*other)


def test_a_files_hash_sees_its_content(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    (tmp_path / "x" / "w").write_text("2")
    (tmp_path / "y" / "w").write_text("1")
    assert file_hash(tmp_path / "x" / "w") != file_hash(tmp_path / "y" / "w")


def test_a_table_is_current_only_if_made_from_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert not is_current(path, "abc")
    write_table(path, pa.table({"a": [1]}), {**stamp("abc"), "cropi.note": "ü"})
    assert is_current(path, "abc")
    assert not is_current(path, "abd")
    assert table_metadata(read_table(path)) == {
        "cropi.inputs_fingerprint": "abc",
        "cropi.note": "ü",
    }


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, pa.table({"a": [1, 2]}), {"cropi.x": "y"})
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"no parquet at all", "not a readable Parquet")],
)
def test_a_file_that_is_no_table_is_an_input_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"PAR1 torn", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_table_is_not_current(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(damage)
    assert not is_current(path, "abc")


def test_a_place_is_tried_without_leaving_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    require_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    require_writable(path)
    assert path.read_text() == "old"
    with pytest.raises(InputError, match="is a directory"):
        require_writable(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        require_writable(path / "below")


def test_a_folder_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(InputError, match="it is a file"), atomic_folder(path):
        raise AssertionError("work was begun")
    assert path.read_text() == "mine"
    assert [f.name for f in tmp_path.iterdir()] == ["taken"]


def test_only_a_disk_error_becomes_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), atomic_folder(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionError), atomic_folder(tmp_path / "b"):
        raise ConnectionError("a defect elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As the superuser, a replaced /dev/null would be lost to the whole machine."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="a pipe"):
        require_writable(path)
    with pytest.raises(InputError, match="a pipe"), atomic_write(path):
        raise AssertionError("work was begun")
    assert path.is_fifo()


@pytest.mark.parametrize("before", ["old", None])
def test_what_a_link_leads_to_is_written_and_the_link_stays(
    tmp_path: Path, before: str | None
) -> None:
    """As /dev/stdout is a link to the file that a shell has opened."""
    target, link = tmp_path / "there" / "target.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    if before is not None:
        target.write_text(before)
    link.symlink_to(target)
    require_writable(link)
    with atomic_write(link) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert left_in(tmp_path) == ["link.txt", "target.txt", "there"]
