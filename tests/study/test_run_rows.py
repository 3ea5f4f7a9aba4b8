"""Reading rows of a run that may still be writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cropi.store.metrics import to_json
from cropi.study.accuracy import read_run_rows


def rows_of(run: Path, missing: list[str]) -> list[dict[str, Any]]:
    return [to_json(row) for row in read_run_rows(run, run, missing).rows]


def test_lines_that_are_no_rows_are_left_out_and_reported(tmp_path: Path) -> None:
    missing: list[str] = []
    (tmp_path / "metrics.jsonl").write_text('{"kind": "a", "n": 1}\n\n[2]\n{"kind": "a", "n": 3')
    assert rows_of(tmp_path, missing) == [{"kind": "a", "n": 1}]
    assert missing == ["metrics.jsonl: 2 unreadable line(s) left out"]


def test_characters_that_end_lines_elsewhere_do_not_cut_a_row(tmp_path: Path) -> None:
    row = {"kind": "a", "text": "one\u2028two\u0085three\x0cfour"}
    (tmp_path / "timings.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    missing: list[str] = []
    assert rows_of(tmp_path, missing) == [row]
    assert missing == []


def test_rows_of_unfinished_stages_are_added_and_equal_rows_stay(tmp_path: Path) -> None:
    stage = tmp_path / "arms" / "cropi" / "stages" / "1"
    stage.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"n": 1}\n{"n": 1}\n')
    (stage / "metrics.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    assert rows_of(tmp_path, []) == [{"n": 1}, {"n": 1}, {"n": 2}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(tmp_path, []) == []
