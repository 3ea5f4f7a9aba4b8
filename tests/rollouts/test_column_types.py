"""Columns of any type: what can mean the same numbers is read as them, anything else is refused."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.rollouts import read_rollouts
from support.rollout_files import rollouts


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = rollouts(tmp_path_factory.mktemp("types") / "p.parquet", 4, 0)
    return pq.read_table(path).replace_schema_metadata(None)


def with_column(table: pa.Table, name: str, change: Callable[[Any], Any], kind: Any) -> pa.Table:
    values = pa.array([change(value) for value in table[name].to_pylist()], kind)
    return table.set_column(table.column_names.index(name), name, values)


def read(table: pa.Table, tmp_path: Path) -> list[tuple[Any, ...]]:
    pq.write_table(table, tmp_path / "t.parquet")
    return [
        (g.prompt_id, g.prompt_ids.tolist(), r.ids.tolist(), r.logprobs.tolist(), r.reward)
        for g in read_rollouts(tmp_path / "t.parquet")
        for r in g.responses
    ]


def same(value: Any) -> Any:
    return value


SAME = {
    "reward float16": ("reward", np.float16, pa.float16()),
    "reward decimal": ("reward", decimal.Decimal, pa.decimal128(10, 4)),
    "reward text": ("reward", str, pa.string()),
    "reward bool": ("reward", bool, pa.bool_()),
    "reward uint8": ("reward", int, pa.uint8()),
    "reward dictionary": ("reward", same, pa.dictionary(pa.int32(), pa.float64())),
    "ids uint64": ("response_ids", same, pa.list_(pa.uint64())),
    "ids double": ("response_ids", same, pa.list_(pa.float64())),
    "ids large": ("response_ids", same, pa.large_list(pa.int64())),
    "ids fixed": ("prompt_ids", same, pa.list_(pa.int32(), 4)),
    "log-probs double": ("logprobs", same, pa.list_(pa.float64())),
    "log-probs float16": ("logprobs", lambda v: list(map(np.float16, v)), pa.list_(pa.float16())),
    "id dictionary": ("prompt_id", same, pa.dictionary(pa.int8(), pa.string())),
    "id binary": ("prompt_id", str.encode, pa.binary()),
    "flag": ("exact", int, pa.int8()),
    "top_k -1": ("top_k", lambda _: -1, pa.int64()),
}


@pytest.mark.parametrize("case", SAME)
def test_equal_values_of_another_type_are_read_equally(
    table: pa.Table, tmp_path: Path, case: str
) -> None:
    name, change, kind = SAME[case]
    assert read(with_column(table, name, change, kind), tmp_path) == read(table, tmp_path)


REFUSED = {
    "float ids": ("prompt_id", lambda v: float(len(v)), pa.float64(), "double cannot be read as"),
    "bool ids": ("prompt_id", lambda _: True, pa.bool_(), "bool cannot be read as text"),
    "empty id": ("prompt_id", lambda _: " ", pa.string(), "row 0, column prompt_id: is empty"),
    "bool tokens": ("response_ids", lambda v: [True] * len(v), None, "cannot be read as lists of"),
    "half tokens": ("response_ids", lambda v: [0.5] * len(v), None, "row 0, .*whole numbers"),
    "wide tokens": ("response_ids", lambda v: [2**40] * len(v), None, "row 0, .*of 32 bits"),
    "bool log-probs": ("logprobs", lambda v: [False] * len(v), None, "lists of numbers"),
    "duration": ("seed", lambda _: 1, pa.duration("s"), "duration.* cannot be read as whole"),
    "date": ("reward", lambda _: 1, pa.date32(), "date32.* cannot be read as numbers"),
    "struct": ("reward", lambda v: {"a": v}, None, "struct.* cannot be read as numbers"),
    "bool temperature": ("temperature", lambda _: True, None, "bool cannot be read as numbers"),
    "top_k": ("top_k", lambda _: -2, pa.int32(), "row 0, column top_k: -2 is below 0"),
    "flag": ("exact", lambda _: 2, pa.int8(), "row 0, column exact: 2 is not 0 or 1"),
    "bad text": ("prompt_id", lambda _: b"\xff", pa.binary(), "row 0, .* cannot be read as text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_mean_something_else_are_refused(
    table: pa.Table, tmp_path: Path, case: str
) -> None:
    name, change, kind, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        read(with_column(table, name, change, kind), tmp_path)
    assert "t.parquet" in str(caught.value)


@pytest.mark.parametrize("place", [0, 3, 9])
def test_the_first_cell_that_cannot_be_read_is_named(
    table: pa.Table, tmp_path: Path, place: int
) -> None:
    values = ["1.0"] * table.num_rows
    values[place] = "one"
    column = table.column_names.index("reward")
    with pytest.raises(InputError, match=f"row {place}, column reward: 'one'"):
        read(table.set_column(column, "reward", pa.array(values)), tmp_path)


def test_a_column_that_is_there_twice_is_refused(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the column 'reward' twice"):
        read(table.append_column("reward", table["reward"]), tmp_path)
