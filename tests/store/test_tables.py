"""Score and selection files: the public columns, written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cropi.errors import InputError
from cropi.schema import (
    EQUAL_REWARDS,
    SCORED,
    TOO_FEW_RESPONSES,
    InfluenceEstimate,
    Selection,
)
from cropi.store.files import read_table, table_metadata, write_table
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection


@pytest.fixture
def scores() -> InfluenceEstimate:
    nan = float("nan")
    return InfluenceEstimate(
        prompt_ids=["b", "equal", "a", "ü", "short"],
        mean={
            "gsm8k": np.array([0.5, nan, -0.25, 0.1, nan], dtype=np.float32),
            "rank_of honour": np.array([0.0, nan, 1.0, -1.0, nan], dtype=np.float32),
        },
        standard_error={
            "gsm8k": np.array([0.1, nan, 0.1, 0.1, nan]),
            "rank_of honour": np.full(5, nan),
        },
        norms=np.array([1.5, nan, 2.0, 0.25, nan], dtype=np.float32),
        tokens=np.array([7, 8, 9, 10, 0]),
        group_size=np.array([4, 4, 3, 2, 1], dtype=np.int32),
        status=[SCORED, EQUAL_REWARDS, SCORED, SCORED, TOO_FEW_RESPONSES],
        unlisted={"not sampled": 6},
        identity={"method": "exact", "target": "mean"},
    )


def test_scores_survive_a_round_trip(tmp_path: Path, scores: InfluenceEstimate) -> None:
    write_scores(tmp_path / "s.parquet", scores, {"cropi.inputs_fingerprint": "x"})
    restored = read_scores(tmp_path / "s.parquet")
    assert restored.prompt_ids == scores.prompt_ids
    assert restored.status == scores.status
    for columns in ("mean", "standard_error"):
        values, expected = getattr(restored, columns), getattr(scores, columns)
        assert list(values) == list(expected)
        for name in expected:
            assert values[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(values[name], expected[name])
    for column in ("norms", "tokens", "group_size"):
        assert getattr(restored, column).dtype == getattr(scores, column).dtype
        np.testing.assert_array_equal(getattr(restored, column), getattr(scores, column))
    assert restored.pool_size == 11
    assert restored.skipped == {EQUAL_REWARDS: 1, TOO_FEW_RESPONSES: 1, "not sampled": 6}
    assert restored.identity == scores.identity


def test_rewards_under_the_policy_survive_where_they_are_known(
    tmp_path: Path, scores: InfluenceEstimate
) -> None:
    write_scores(tmp_path / "plain.parquet", scores)
    assert read_scores(tmp_path / "plain.parquet").current_reward is None
    scores.current_reward = np.array([0.5, 1.0, np.nan, 0.2, np.nan], np.float32)
    scores.effective_share = np.array([0.9, np.nan, np.nan, 1.0, np.nan], np.float32)
    write_scores(tmp_path / "s.parquet", scores)
    restored = read_scores(tmp_path / "s.parquet")
    assert list(restored.mean) == list(scores.mean)
    np.testing.assert_array_equal(restored.current_reward, scores.current_reward)
    np.testing.assert_array_equal(
        restored.scored().effective_share, scores.effective_share[[0, 2, 3]]
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("effective_share", 3.0, "3.0 is not a number from 0 to 1"),
        ("effective_share", -0.25, "-0.25 is not a number"),
        ("effective_share", np.nan, "is missing"),
        ("current_reward", -np.inf, "-inf is not a number"),
    ],
)
def test_what_no_policy_can_have_is_refused(
    tmp_path: Path, scores: InfluenceEstimate, column: str, value: float, message: str
) -> None:
    scores.current_reward = np.full(5, 0.5, np.float32)
    scores.effective_share = np.full(5, 0.9, np.float32)
    getattr(scores, column)[0] = value
    write_scores(tmp_path / "bad.parquet", scores)
    with pytest.raises(InputError, match=rf"row 0, column {column}: {message}"):
        read_scores(tmp_path / "bad.parquet")


def test_score_columns_are_those_of_the_contract(tmp_path: Path, scores: InfluenceEstimate) -> None:
    write_scores(tmp_path / "s.parquet", scores)
    table = read_table(tmp_path / "s.parquet")
    kinds = {field.name: field.type for field in table.schema}
    assert kinds == {
        "prompt_id": pa.string(),
        "norm": pa.float32(),
        "gsm8k": pa.float32(),
        "rank_of honour": pa.float32(),
        "gsm8k_standard_error": pa.float64(),
        "rank_of honour_standard_error": pa.float64(),
        "tokens": pa.int64(),
        "group_size": pa.int32(),
        "status": pa.string(),
    }
    assert table["gsm8k"].null_count == table["norm"].null_count == 2
    assert table_metadata(table)["cropi.pool_size"] == "11"


def test_a_file_that_lists_scored_prompts_only_is_read(tmp_path: Path) -> None:
    """What earlier versions wrote: the pool's size and the prompts without a row in metadata."""
    columns = {"prompt_id": ["b", "a"], "norm": [1.5, 2.0], "gsm8k": [0.5, -0.25]}
    about = {"cropi.pool_size": "11", "cropi.skipped": '{"rewards all equal": 8}'}
    write_table(tmp_path / "s.parquet", pa.table(columns), about)
    estimate = read_scores(tmp_path / "s.parquet")
    assert (estimate.prompt_ids, estimate.pool_size) == (["b", "a"], 11)
    assert estimate.skipped == {EQUAL_REWARDS: 8, "not listed": 1}
    assert estimate.is_scored.all()
    assert estimate.mean["gsm8k"].tolist() == [0.5, -0.25]
    assert np.isnan(estimate.standard_error["gsm8k"]).all()


@pytest.mark.parametrize("name", ["norm", "prompt_id", "tokens", "status", "v_standard_error"])
def test_a_target_cannot_take_the_name_of_another_column(
    tmp_path: Path, scores: InfluenceEstimate, name: str
) -> None:
    scores.mean[name] = scores.norms
    with pytest.raises(InputError, match=f"cannot be called '{name}'.*another name"):
        write_scores(tmp_path / "s.parquet", scores)
    assert not (tmp_path / "s.parquet").exists()


def test_a_foreign_score_file_without_metadata_is_read(tmp_path: Path) -> None:
    columns = {"prompt_id": ["a", "b"], "math": [0.1, 0.2], "count": [3, 4]}
    write_table(tmp_path / "s.parquet", pa.table(columns))
    estimate = read_scores(tmp_path / "s.parquet")
    assert list(estimate.mean) == ["math"]
    assert estimate.mean["math"].dtype == np.float32
    assert estimate.pool_size == 2
    assert estimate.norms.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt_id": ["a"]}, "is not a score file"),
        ({"math": [0.5]}, "is not a score file"),
        ({"prompt_id": pa.array([], pa.string()), "x": pa.array([], pa.float32())}, "has no rows"),
        ({"prompt_id": ["a", "a"], "x": [0.1, 0.2]}, "more than one row"),
        (
            {"prompt_id": ["a", "b"], "x": [0.1, float("nan")]},
            "row 1, column x: nan is not a finite",
        ),
        ({"prompt_id": ["a", "b"], "x": [0.1, None]}, "row 1, column x: nan is not a finite"),
        ({"prompt_id": ["a"], "x": [None], "status": ["scored"]}, "is not a score file"),
        ({"prompt_id": ["a"], "x": [0.1], "status": ["rewards all equal"]}, "scores no prompt"),
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
    restored = read_selection(tmp_path / "s.parquet")
    assert restored.prompt_ids == selection.prompt_ids
    assert restored.scores.tolist() == selection.scores.tolist()
    assert {n: r.tolist() for n, r in restored.ranks.items()} == {"gsm8k": [1, 2], "rank_x": [0, 1]}
    assert (restored.negative, restored.notes) == (1, selection.notes)


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
        ({"prompt_id": ["a"], "norm": [1.0], "status": ["ok"]}, "holds scores.*cropi select"),
    ],
)
def test_a_bad_selection_file_is_one_sentence(tmp_path: Path, columns: dict, message: str) -> None:
    write_table(tmp_path / "s.parquet", pa.table(columns))
    with pytest.raises(InputError, match=message) as caught:
        read_selection(tmp_path / "s.parquet")
    assert "\n" not in str(caught.value)
