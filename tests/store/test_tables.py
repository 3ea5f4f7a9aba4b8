"""Score and selection files: the public columns, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cropi.errors import InputError
from cropi.schema import ScoreTable, Selection
from cropi.store.files import read_table, table_metadata, write_table
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection


@pytest.fixture
def scores() -> ScoreTable:
    return ScoreTable(
        prompt_ids=["b", "a", "ü"],
        cosines={
            "gsm8k": np.array([0.5, -0.25, 0.1], dtype=np.float32),
            "rank_of honour": np.array([0.0, 1.0, -1.0], dtype=np.float32),
        },
        norms=np.array([1.5, 2.0, 0.0], dtype=np.float32),
        pool_size=11,
        skipped={"rewards all equal": 8},
        identity={"method": "exact", "target": "mean"},
    )


def test_scores_survive_a_round_trip(tmp_path: Path, scores: ScoreTable) -> None:
    write_scores(tmp_path / "s.parquet", scores, {"cropi.inputs_fingerprint": "x"})
    found = read_scores(tmp_path / "s.parquet")
    assert found.prompt_ids == scores.prompt_ids
    assert list(found.cosines) == list(scores.cosines)
    for name, values in scores.cosines.items():
        assert found.cosines[name].tolist() == values.tolist()
    assert found.norms.tolist() == scores.norms.tolist()
    assert (found.pool_size, found.skipped) == (11, scores.skipped)
    assert found.identity == scores.identity


def test_score_columns_are_those_of_the_contract(tmp_path: Path, scores: ScoreTable) -> None:
    write_scores(tmp_path / "s.parquet", scores)
    table = read_table(tmp_path / "s.parquet")
    kinds = {field.name: field.type for field in table.schema}
    cosines = dict.fromkeys(scores.cosines, pa.float32())
    assert kinds == {"prompt_id": pa.string(), "norm": pa.float32(), **cosines}
    assert table_metadata(table)["cropi.pool_size"] == "11"


@pytest.mark.parametrize("name", ["norm", "prompt_id"])
def test_a_target_cannot_take_the_name_of_another_column(
    tmp_path: Path, scores: ScoreTable, name: str
) -> None:
    scores.cosines[name] = scores.norms
    with pytest.raises(InputError, match=f"cannot be called '{name}'.*another name"):
        write_scores(tmp_path / "s.parquet", scores)
    assert not (tmp_path / "s.parquet").exists()


def test_a_foreign_score_file_without_metadata_is_read(tmp_path: Path) -> None:
    columns = {"prompt_id": ["a", "b"], "math": [0.1, 0.2], "count": [3, 4]}
    write_table(tmp_path / "s.parquet", pa.table(columns))
    found = read_scores(tmp_path / "s.parquet")
    assert list(found.cosines) == ["math"]
    assert found.cosines["math"].dtype == np.float32
    assert found.pool_size == 2
    assert found.norms.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt_id": ["a"]}, "is no score file"),
        ({"math": [0.5]}, "is no score file"),
        ({"prompt_id": pa.array([], pa.string()), "x": pa.array([], pa.float32())}, "no prompt"),
        ({"prompt_id": ["a", "a"], "x": [0.1, 0.2]}, "more than one row"),
        ({"prompt_id": ["a", "b"], "x": [0.1, float("nan")]}, "column x holds NaN"),
        ({"prompt_id": ["a", "b"], "x": [0.1, None]}, "column x holds NaN"),
    ],
)
def test_a_bad_score_file_is_one_sentence(tmp_path: Path, columns: dict, message: str) -> None:
    write_table(tmp_path / "s.parquet", pa.table(columns))
    with pytest.raises(InputError, match=message) as caught:
        read_scores(tmp_path / "s.parquet")
    assert "\n" not in str(caught.value)


@pytest.fixture
def selection() -> Selection:
    return Selection(
        ["b", "a"],
        np.array([1.5, 0.5]),
        {"gsm8k": np.array([1, 2], np.int32), "rank_x": np.array([0, 1], np.int32)},
        negative=1,
        notes=["only 2 of the wanted 3"],
    )


def test_selections_survive_a_round_trip(tmp_path: Path, selection: Selection) -> None:
    write_selection(tmp_path / "s.parquet", selection)
    found = read_selection(tmp_path / "s.parquet")
    assert found.prompt_ids == selection.prompt_ids
    assert found.scores.tolist() == selection.scores.tolist()
    assert {n: r.tolist() for n, r in found.ranks.items()} == {"gsm8k": [1, 2], "rank_x": [0, 1]}
    assert (found.negative, found.notes) == (1, selection.notes)


def test_a_selection_is_read_in_the_order_of_its_ranks(tmp_path: Path) -> None:
    columns = {"prompt_id": ["c", "a", "b"], "rank": [3, 1, 2]}
    write_table(tmp_path / "s.parquet", pa.table(columns))
    assert read_selection(tmp_path / "s.parquet").prompt_ids == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt_id": pa.array([], pa.string())}, "selects nothing"),
        ({"id": ["a"]}, "selects nothing"),
        ({"prompt_id": ["a", "a"]}, "more than one row"),
    ],
)
def test_a_bad_selection_file_is_one_sentence(tmp_path: Path, columns: dict, message: str) -> None:
    write_table(tmp_path / "s.parquet", pa.table(columns))
    with pytest.raises(InputError, match=message) as caught:
        read_selection(tmp_path / "s.parquet")
    assert "\n" not in str(caught.value)
