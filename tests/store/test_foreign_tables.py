"""Score and selection files with other types, numbers and metadata: read alike, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.schema import EQUAL_REWARDS, SCORED, InfluenceEstimate, Selection
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def scores(tmp_path: Path) -> pa.Table:
    estimate = InfluenceEstimate.from_means(list("abcd"), {"v": np.array([0.5, -0.25, 0, 0.125])})
    estimate.status[2] = EQUAL_REWARDS
    estimate.mean["v"][2] = np.nan
    write_scores(tmp_path / "s.parquet", estimate)
    return plain(tmp_path / "s.parquet")


def plain(path: Path) -> pa.Table:
    """A table as another program would write it: without the hash of its content."""
    table = pq.read_table(path)
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"cropi.content"}
    return table.replace_schema_metadata(metadata)


def read(table: pa.Table, tmp_path: Path) -> InfluenceEstimate:
    pq.write_table(table, tmp_path / "c.parquet")
    return read_scores(tmp_path / "c.parquet")


def changed(name: str, values: Any, kind: pa.DataType | None = None) -> Change:
    """Replace a column, or one cell of it where `values` is a pair of place and value."""

    def change(table: pa.Table) -> pa.Table:
        new = values
        if isinstance(values, tuple):
            new = table[name].to_pylist()
            new[values[0]] = values[1]
        column = pa.array(new, kind or table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, column)

    return change


def about(key: str, value: str) -> Change:
    return lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, key.encode(): value}
    )


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.decimal128(9, 4)], ids=str)
def test_cosines_of_another_type_are_read_equally(
    scores: pa.Table, tmp_path: Path, kind: pa.DataType
) -> None:
    values = [None if v is None else np.float16(v) for v in scores["v"].to_pylist()]
    if pa.types.is_decimal(kind):
        column = scores["v"].cast(pa.float64()).cast(kind)
    else:
        column = pa.array(values, pa.float16()).cast(kind)
    table = scores.set_column(scores.column_names.index("v"), "v", column)
    assert read(table, tmp_path).mean["v"].tolist()[:2] == [0.5, -0.25]


REFUSED: dict[str, tuple[Change, str]] = {
    "NaN": (changed("v", (0, float("nan"))), "row 0, column v: nan is not a finite number"),
    "null": (changed("v", (1, None)), "row 1, column v: nan is not a finite number"),
    "not a cosine": (changed("v", (3, 1.5)), "row 3, column v: 1.5 is not a cosine"),
    "no column": (lambda t: t.drop_columns(["v"]), "lacks the column v"),
    "text": (changed("v", ["x"] * 4, pa.string()), "row 0, column v: 'x' cannot be read"),
    "struct": (changed("v", [{"a": 1}] * 4, pa.struct([("a", pa.int8())])), "column v: struct"),
    "norm": (changed("norm", (0, 0.0)), "row 0, column norm: 0.0 is not the length"),
    "long norm": (changed("norm", (0, 1e300), pa.float64()), "column norm: 1e\\+300 is not the"),
    "short norm": (changed("norm", (0, 1e-300), pa.float64()), "column norm: 1e-300 is not the"),
    "wide error": (changed("v_standard_error", (0, 1e308)), "1e\\+308 is not a number from 0 to 2"),
    "error": (changed("v_standard_error", (2, -1.0)), "column v_standard_error: -1.0 is not"),
    "tokens": (changed("tokens", (1, -1)), "row 1, column tokens: -1 is not a count"),
    "size": (changed("group_size", (1, 2**40), pa.int64()), "column group_size"),
    "status": (changed("status", (0, "fine")), "row 0, column status: fine is not one of"),
    "no status": (changed("status", (0, None)), "row 0, column status: is null"),
    "float id": (changed("prompt_id", [1.0, 2, 3, 4], pa.float64()), "prompt_id: double"),
    "no id": (changed("prompt_id", (0, "")), "row 0, column prompt_id: is empty"),
    "twice": (changed("prompt_id", (0, "b")), "on more than one row"),
    "set name": (lambda t: t.append_column("../w", pa.array([0.1] * 4)), "contains /"),
    "pool": (about("cropi.pool_size", "many"), "cropi.pool_size holds 'many'"),
    "long pool": (about("cropi.pool_size", "1" * 5000), "cropi.pool_size holds"),
    "small pool": (about("cropi.pool_size", "2"), "says 2 prompts, and 4 are listed"),
    "unlisted": (about("cropi.unlisted", "[]"), "cropi.unlisted holds '.*' where a JSON object"),
    "count": (about("cropi.unlisted", '{"a": -7}'), "cropi.unlisted holds -7"),
    "identity": (about("cropi.influence", "{" * 99), "cropi.influence holds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_score_is_refused_by_place(scores: pa.Table, tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    assert read(scores, tmp_path).status == [SCORED, SCORED, EQUAL_REWARDS, SCORED]
    with pytest.raises(InputError, match=message) as caught:
        read(change(scores), tmp_path)
    assert "c.parquet" in str(caught.value)


def test_metadata_that_is_not_text_is_read(scores: pa.Table, tmp_path: Path) -> None:
    odd = scores.replace_schema_metadata({**scores.schema.metadata, b"cropi.\xff": b"\xff"})
    assert read(odd, tmp_path).prompt_ids == list("abcd")


SELECTIONS: dict[str, tuple[Change, str]] = {
    "rank twice": (changed("rank", (0, 2)), "rank on more than one row"),
    "no rank": (changed("rank", (0, None)), "row 0, column rank: is null"),
    "half a rank": (changed("rank", [0.5, 1, 2], pa.float64()), "row 0, column rank: 0.5"),
    "set's rank": (changed("rank_v", (2, -1)), "row 2, column rank_v: -1 is not a count"),
    "score": (changed("score", ["x"] * 3, pa.string()), "column score: 'x' cannot be read"),
    "score that is none": (changed("score", ["1", "2", "nan"], pa.string()), "row 2, column score"),
    "infinite score": (changed("score", (1, -np.inf)), "row 1, column score: -inf is not finite"),
    "id": (changed("prompt_id", (1, None)), "row 1, column prompt_id: is null"),
    "negative": (about("cropi.negative", "few"), "cropi.negative holds 'few'"),
    "notes": (about("cropi.notes", "{"), "cropi.notes holds '{' where a JSON list"),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_what_is_no_selection_is_refused_by_place(tmp_path: Path, case: str) -> None:
    chosen = Selection(["a", "b", "c"], np.array([3.0, 2, 1]), {"v": np.array([1, 2, 3])})
    write_selection(tmp_path / "s.parquet", chosen)
    table = plain(tmp_path / "s.parquet")
    backwards = table.take(pa.array([2, 1, 0]))
    pq.write_table(backwards, tmp_path / "c.parquet")
    again = read_selection(tmp_path / "c.parquet")
    assert again.prompt_ids == ["a", "b", "c"]
    assert again.scores.tolist() == [3, 2, 1]
    assert again.ranks["v"].tolist() == [1, 2, 3]
    change, message = SELECTIONS[case]
    pq.write_table(change(table), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=message):
        read_selection(tmp_path / "c.parquet")
