"""Reading rows of a run that is still being written."""

from __future__ import annotations

import json
from pathlib import Path

from cropi.report.rows import metrics_rows, readable_rows


def test_half_a_line_is_left_out_and_told(tmp_path: Path) -> None:
    missing: list[str] = []
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n[2]\n{"n": 3')
    assert readable_rows(tmp_path / "a.jsonl", tmp_path, missing) == [{"n": 1}]
    assert missing == ["a.jsonl: 1 unreadable line(s) left out"]


def test_marks_that_end_lines_elsewhere_do_not_cut_a_row(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\u0085three\x0cfour"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    missing: list[str] = []
    assert readable_rows(tmp_path / "a.jsonl", tmp_path, missing) == [row]
    assert missing == []


def test_rows_of_unfinished_stages_are_added_and_equal_rows_stay(tmp_path: Path) -> None:
    stage = tmp_path / "arms" / "cropi" / "stages" / "1"
    stage.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"n": 1}\n{"n": 1}\n')
    (stage / "metrics.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    assert metrics_rows(tmp_path, tmp_path, []) == [{"n": 1}, {"n": 1}, {"n": 2}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert metrics_rows(tmp_path, tmp_path, []) == []
