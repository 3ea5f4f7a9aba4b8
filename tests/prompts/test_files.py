"""The same rows are the same prompts in every container; what cannot be read is one sentence."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cropi
from cropi.errors import InputError
from cropi.prompts.settings import PromptSource
from cropi.prompts.sources import first_prompts, load_source, source_hash
from cropi.schema import Prompt

ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "answer": "2", "level": "007"},
    {"question": 'a, "quoted"\nquestion; with \u2028 and ü', "answer": "1.50", "level": "x"},
    {"question": "none?", "answer": "NA", "level": "null"},
]


def load(path: Path | str, **settings: Any) -> list[Prompt]:
    return load_source(PromptSource(path=str(path), **settings), 0)


def json_lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(delimiter: str, rows: list[dict[str, Any]] = ROWS) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def parquet(rows: list[dict[str, Any]] = ROWS) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def arrow(new: Callable[..., Any], rows: list[dict[str, Any]] = ROWS) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


CONTENTS: dict[str, Callable[[], bytes]] = {
    "pool.jsonl": json_lines,
    "pool.ndjson": json_lines,
    "pool.jsonl.gz": lambda: gzip.compress(json_lines()),
    "pool.jsonl.zst": lambda: zstd(json_lines()),
    "pool.jsonl.bz2": lambda: bz2.compress(json_lines()),
    "pool.jsonl.xz": lambda: lzma.compress(json_lines()),
    "pool-00000-of-00001.jsonl": json_lines,
    "pool.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "pool.json.gz": lambda: gzip.compress(json.dumps({"version": 1, "data": ROWS}).encode()),
    "pool.csv": lambda: separated(","),
    "pool.CSV": lambda: b"\xef\xbb\xbf" + separated(";"),
    "pool.csv.gz": lambda: gzip.compress(separated(",")),
    "pool.Csv": lambda: separated("\t"),
    "pool.tsv": lambda: separated("\t"),
    "pool.parquet": parquet,
    "pool.arrow": lambda: arrow(pa.ipc.new_file),
    "pool.feather": lambda: arrow(pa.ipc.new_file),
    "pool.ipc": lambda: arrow(pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_gives_the_same_prompts_and_ids(tmp_path: Path, name: str) -> None:
    expected = tmp_path / "expected" / "pool.jsonl"
    expected.parent.mkdir()
    expected.write_bytes(json_lines())
    (tmp_path / name).write_bytes(CONTENTS[name]())
    assert load(tmp_path / name) == load(expected)


def test_json_spread_over_lines_and_files_called_otherwise_are_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.json").write_bytes(json_lines())
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(json_lines()))
    (tmp_path / "c.jsonl.gz").write_bytes(json_lines())
    rows = [json.loads(line) for line in json_lines().splitlines()]
    (tmp_path / "d.jsonl").write_text(json.dumps(rows, indent=2))
    for name in ("e.jsonl", "f.json"):
        (tmp_path / name).write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    answers = {tuple(p.answer for p in load(path)) for path in sorted(tmp_path.iterdir())}
    assert answers == {("2", "1.50", "NA")}


def test_shards_are_one_source_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("no JSON")
    rows = [{"question": f"{i} + 0?", "answer": str(i)} for i in range(12)]
    for i, row in enumerate(rows):
        (folder / f"part-{i}.jsonl").write_bytes(json_lines([row]))
    (tmp_path / "sums.jsonl").write_bytes(json_lines(rows))
    expected = load(tmp_path / "sums.jsonl")
    assert (
        load(folder)
        == load(folder / "*.jsonl")
        == load(tmp_path / "s*" / "p*.jsonl", source="sums")
    )
    assert load(folder) == expected
    assert {p.source for p in load(folder / "part-*.jsonl")} == {"part"}
    assert first_prompts(PromptSource(path="sums"), 5, tmp_path) == expected[:5]


def test_a_row_that_two_shards_hold_is_there_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines())
    with pytest.warns(UserWarning, match="3 duplicate prompts left out"):
        assert len(cropi.load_prompts(tmp_path)) == 3


def test_what_datasets_saves_is_read_as_it_was(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "pool", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path / "both")
    (tmp_path / "pool.jsonl").write_bytes(json_lines())
    assert load(tmp_path / "pool") == load(tmp_path / "pool.jsonl")
    assert [p.answer for p in load(tmp_path / "both", split="test")] == ["1.50"]
    with pytest.raises(InputError, match=r"both holds the splits train, test; pick one"):
        load(tmp_path / "both")
    with pytest.raises(InputError, match=r"'dev' is not one of the splits .*train, test"):
        load(tmp_path / "both", split="dev")
    (tmp_path / "pool" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"pool lacks data-00001-of-00002\.arrow"):
        load(tmp_path / "pool")


def test_splits_of_a_folder_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        content = parquet([{"question": split, "answer": "1"}])
        (tmp_path / "data" / f"{split}-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"holds the splits test, train; pick one"):
        load(tmp_path)
    assert [p.prompt for p in load(tmp_path, split="train")] == ["train"]


def test_a_table_of_columns_and_data_is_its_rows(tmp_path: Path) -> None:
    """As Weights & Biases stores tables, and pandas with orient=split."""
    path = tmp_path / "a.table.json"
    table = {"columns": ["question", "answer"], "data": [["2+2?", "4"], ["2+3?", "5"]]}
    path.write_text(json.dumps(table))
    prompts = load_source(PromptSource(path=str(path)), 0)
    assert [(p.prompt, p.answer) for p in prompts] == [("2+2?", "4"), ("2+3?", "5")]
    for wrong in ({"columns": ["answer", "answer"]}, {"data": [["2+2?"]]}):
        path.write_text(json.dumps({**table, **wrong}))
        with pytest.raises(InputError, match="without a list of rows"):
            load_source(PromptSource(path=str(path)), 0)


def test_nested_columns_of_a_csv_file_are_json(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+2?"}]
    rows = [{"prompt": json.dumps(chat), "answer": "4", "extra_info": '{"index": 1}'}]
    (tmp_path / "a.csv").write_bytes(separated(",", rows))
    (prompt,) = load(tmp_path / "a.csv")
    assert (prompt.messages, prompt.extra) == (tuple(chat), {"extra_info": {"index": 1}})
    for column, value in {"prompt": str(chat), "extra_info": "{'index': 1}"}.items():
        (tmp_path / "b.csv").write_bytes(separated(",", [{**rows[0], column: value}]))
        with pytest.raises(InputError, match=rf"b\.csv row 2.*column '?{column}.*not JSON"):
            load(tmp_path / "b.csv")


BAD: dict[str, tuple[bytes, str]] = {
    "a.xlsx": (b"x", r"ends in '\.xlsx'; prompts come from \.jsonl"),
    "a.parquet.gz": (b"x", r"ends in '\.gz'; prompts come from"),
    "half.jsonl.gz": (gzip.compress(json_lines())[:-20], r"cannot read .*half\.jsonl\.gz"),
    "half.jsonl.zst": (zstd(json_lines())[:-20], r"cannot read .*half\.jsonl\.zst"),
    "half.jsonl.xz": (lzma.compress(json_lines())[:-20], r"cannot read .*half\.jsonl\.xz"),
    "bad.jsonl.gz": (b"\x1f\x8b" + b"0" * 40, r"cannot read .*bad\.jsonl\.gz"),
    "half.arrow": (arrow(pa.ipc.new_file)[:-40], r"half\.arrow is not a readable Arrow"),
    "two.json": (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', r"several lists of rows \(train, t"),
    "columns.json": (b'{"question": ["q"], "answer": ["1"]}', r"without a list of rows"),
    "long.csv": (
        b"question,answer\nq,1\na, b,1\n",
        r"long\.csv row 3 has 3 cells and the header 2",
    ),
    "twice.csv": (b"answer,question,answer\n1,q,1\n", r"twice\.csv has the column 'answer' twice"),
    "quote.csv": (b'question,answer\n"q" x,1\n', r"quote\.csv line 2 is not valid CSV"),
    "utf16.csv": ("question,answer\nq,1\n".encode("utf-16"), r"utf16\.csv is not UTF-8"),
    "none.json": (b'{"data": [], "errors": []}', r"several lists"),
    "empty.json": (b'{"data": []}', r"empty\.json holds no rows"),
    "mixed.json": (
        b'{"data": [{"input": "q", "label": 1}, 2]}',
        r"json row 2 is of type int",
    ),
    "head.csv": (b"question,answer\n", r"head\.csv holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_several_kinds_or_without_all_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without files of prompts"):
        load(tmp_path)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"gone\.jsonl is not a file, or a link to none"):
        load(tmp_path)
    (tmp_path / "gone.jsonl").unlink()
    (tmp_path / "a-00002-of-00003.jsonl").write_bytes(json_lines())
    (tmp_path / "a-00000-of-00003.jsonl").write_bytes(json_lines())
    with pytest.raises(InputError, match=r"of the 3 shards .* number 1 is missing"):
        load(tmp_path)
    (tmp_path / "b.csv").write_bytes(separated(","))
    with pytest.raises(InputError, match=r"several kinds, such as a-0.*jsonl and b\.csv"):
        load(tmp_path)
    with pytest.raises(
        InputError, match=r"nothing-\*\.jsonl is not a file, a folder, or a pattern"
    ):
        load(tmp_path / "nothing-*.jsonl")
    with pytest.raises(InputError, match=r"split .test. has no effect on"):
        load(tmp_path / "b.csv", split="test")


def test_the_hash_of_a_source_is_that_of_all_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines())
    before = source_hash(str(tmp_path), None)
    (tmp_path / "b.jsonl").write_bytes(json_lines(ROWS[:1]))
    assert source_hash(str(tmp_path), None) != before
