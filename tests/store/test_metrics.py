"""Rows of metrics.jsonl and timings.jsonl: what is written is read back, and damage is counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cropi.store.metrics import (
    AnyRow,
    ClockRow,
    CostRow,
    EvaluationRow,
    StageRow,
    TimingRow,
    TrainRow,
    UnknownRow,
    append_row,
    cost_row,
    from_json,
    read_rows,
    to_json,
    write_rows,
)

ROWS: list[AnyRow] = [
    EvaluationRow(
        step=3,
        set="sort",
        targeted=True,
        prompts=8,
        pass_at={1: 0.5, 8: 0.75},
        statuses={"ok": 8},
        sampled_tokens=40,
        prompt_tokens=70,
        generated_tokens=5,
        prefill_tokens=6,
        trained_tokens=7,
        arm="cropi",
        stage=1,
    ),
    TrainRow(arm="cropi", stage=0, step=2, values={"reward": 0.25, "loss": None, "extra": "x"}),
    StageRow(
        arm="cropi",
        stage=0,
        steps=3,
        selected=4,
        negative=1,
        notes=["few"],
        targets={"sort": {"largest_share": 0.5}},
        reward_statuses={"ok": 9, "timeout": 1},
        prompts_sampled=12,
        uninformative_trained=2,
    ),
    CostRow(phase="rollouts", tokens_generated=5, flops=10, set="pool", arms=["cropi"]),
    CostRow(phase="training", arm="full", stage=0, tokens_forward=3, tokens_backward=3),
    TimingRow(phase="scoring", seconds=1.5, arm="cropi", stage=0),
    TimingRow(phase="rollouts", seconds=2, set="pool", arms=[]),
    ClockRow(arm="cropi", step=3, seconds=9.25, stage=1),
    UnknownRow({"kind": "of another version", "value": [1]}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_every_row_is_read_back_as_it_was_written(row: AnyRow, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row])
    append_row(tmp_path / "rows.jsonl", row)
    assert read_rows(tmp_path / "rows.jsonl").rows == [row, row]


def test_a_half_written_line_is_left_out_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, ROWS)
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"kind": "evaluation", "arm": "cro')
    rows = read_rows(file)
    assert (rows.rows, rows.unreadable) == (ROWS, 1)


@pytest.mark.parametrize(
    ("line", "unreadable"),
    [
        ('{"kind": "evaluation", "set": "sort", "step": "1"}', 1),
        ('{"set": "sort", "step": 1}', 1),
        ('{"phase": "scoring"}', 1),
        ('{"kind": "of another version"}', 0),
        ("{}", 0),
        ("[1, 2]", 1),
        ('"text"', 1),
        ("null", 1),
        ("12", 1),
    ],
)
def test_a_line_that_is_no_row_or_lacks_what_its_kind_has_is_counted(
    tmp_path: Path, line: str, unreadable: int
) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    assert read_rows(tmp_path / "rows.jsonl").unreadable == unreadable


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl").rows == []


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "evaluation", "set": "sort"},
        {"kind": "evaluation", "set": ["sort"], "step": 1},
        {"kind": "evaluation", "set": "sort", "step": "1"},
        {"kind": "evaluation", "set": "sort", "step": 1, "pass_at": {"one": 1.0}},
        {"kind": "evaluation", "set": "sort", "step": 1, "pass_at": [1.0]},
        {"kind": "cost", "phase": "rollouts", "tokens_forward": True},
        {"kind": "cost", "phase": "rollouts", "arms": "cropi"},
        {"phase": "clock", "arm": "cropi", "step": 1},
        {"phase": "scoring"},
        {"kind": "future"},
        {},
    ],
)
def test_a_row_of_another_shape_stays_as_it_is(raw: dict[str, object]) -> None:
    assert from_json(raw) == UnknownRow(raw)
    assert to_json(from_json(raw)) == raw


def test_fields_of_a_newer_version_do_not_hide_a_row() -> None:
    row = from_json({"kind": "cost", "phase": "rollouts", "flops": 7.5, "joules": 3})
    assert row == CostRow(phase="rollouts", flops=7.5)


def test_an_accuracy_that_could_not_be_measured_is_nan(tmp_path: Path) -> None:
    row = EvaluationRow(step=0, set="sort", pass_at={1: float("nan")})
    write_rows(tmp_path / "rows.jsonl", [row])
    (again,) = read_rows(tmp_path / "rows.jsonl").of_kind(EvaluationRow)
    assert again.pass_at[1] != again.pass_at[1]
    assert from_json({"kind": "evaluation", "step": 0, "set": "s", "pass_at": {"1": None}})


def test_flops_count_two_per_parameter_forward_and_four_more_backward() -> None:
    row = cost_row("training", 10, "full", 2, generated=3, forward=5, backward=4)
    assert row.flops == 10 * (2 * (3 + 5) + 4 * 4)
    assert (row.arm, row.stage) == ("full", 2)


def test_rows_keep_the_field_names_that_other_tools_read() -> None:
    row = json.loads(json.dumps(to_json(ROWS[0])))
    assert row["kind"] == "evaluation"
    assert row["pass_at"] == {"1": 0.5, "8": 0.75}
    assert row.keys() == {"kind", *(f.name for f in dataclasses.fields(EvaluationRow))}
    assert to_json(ROWS[1]) == {
        "kind": "train",
        "arm": "cropi",
        "step": 2,
        "stage": 0,
        "reward": 0.25,
        "loss": None,
        "extra": "x",
    }
    assert to_json(ROWS[7])["phase"] == "clock"
