"""What is on disk is used again only if it is whole and was made from the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cropi.store.cached import FINGERPRINT, cached, recorded_fingerprint, stamp
from cropi.store.files import POLICY_RECORD, atomic_folder, write_json, write_table
from cropi.store.ledger import LEDGER, Ledger

Writer = Callable[[Path, str], None]


def table(path: Path, fingerprint: str) -> None:
    write_table(path, pa.table({"a": [1]}), stamp(fingerprint))


def record(path: Path, fingerprint: str) -> None:
    write_json(path, {FINGERPRINT: fingerprint})


def folder(path: Path, fingerprint: str) -> None:
    with atomic_folder(path) as part:
        write_json(part / POLICY_RECORD, {FINGERPRINT: fingerprint})


OUTPUTS = {"scores.parquet": table, "rollouts.json": record, "policy": folder}


@pytest.mark.parametrize(("name", "write"), OUTPUTS.items())
def test_an_output_is_made_once_and_again_for_other_inputs(
    tmp_path: Path, name: str, write: Writer
) -> None:
    made: list[str] = []

    def make(fingerprint: str) -> None:
        made.append(fingerprint)
        write(tmp_path / name, fingerprint)

    for inputs in (["a", 1], ["a", 1], ["a", 2]):
        assert cached(tmp_path / name, inputs, make) == tmp_path / name
    assert len(made) == len(set(made)) == 2
    assert recorded_fingerprint(tmp_path / name) == made[-1]


@pytest.mark.parametrize("damage", [b"", b"PAR1 torn", b"[1]", b'{"inputs_finger', b"\xff\xfe"])
@pytest.mark.parametrize(("name", "write"), OUTPUTS.items())
def test_a_damaged_output_is_made_again(
    tmp_path: Path, name: str, write: Writer, damage: bytes
) -> None:
    out = tmp_path / name
    cached(out, "inputs", lambda fingerprint: write(out, fingerprint))
    (out / POLICY_RECORD if out.is_dir() else out).write_bytes(damage)
    assert recorded_fingerprint(out) is None
    cached(out, "inputs", lambda fingerprint: write(out, fingerprint))
    assert recorded_fingerprint(out) is not None


def test_a_step_that_does_not_record_its_inputs_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="does not record its inputs"):
        cached(tmp_path / "a.json", "inputs", lambda _: write_json(tmp_path / "a.json", {}))


def test_a_step_that_fails_leaves_the_old_output(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    cached(out, "old", lambda fingerprint: record(out, fingerprint))
    before = out.read_bytes()

    def fail(_: str) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cached(out, "new", fail)
    assert out.read_bytes() == before


def test_a_ledger_of_another_run_is_named(tmp_path: Path) -> None:
    ledgers = {}
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        record(tmp_path / run / "facts.json", run)
        ledgers[run] = Ledger(tmp_path / run)
        ledgers[run].record(tmp_path / run / "facts.json", run, [tmp_path / run / "facts.json"])
    assert ledgers["one"].notes() == []
    (tmp_path / "one" / LEDGER).write_bytes((tmp_path / "other" / LEDGER).read_bytes())
    assert (
        "1 of 1 files are not as artifacts.jsonl lists them" in Ledger(tmp_path / "one").notes()[0]
    )
