"""Whatever is selected comes out whole: every prompt, every column, and rewards that agree."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cropi.cli import app
from cropi.errors import InputError
from cropi.exchange.exports import export_selection, trainers
from cropi.exchange.exports.jsonl import Jsonl
from cropi.exchange.exports.row_table import row_table
from cropi.exchange.exports.trainer_format import Start
from cropi.prompts.formats import to_prompt
from cropi.prompts.settings import PromptSource
from cropi.schema import Prompt, Selection
from cropi.verifiers.settings import VerifiersConfig

EXACT = VerifiersConfig(default="exact", workers=1)


def pool_of(rows: list[dict[str, Any]]) -> list[Prompt]:
    source = PromptSource(path="rows.jsonl")
    return [to_prompt(row, source, f"row {n}", "tests") for n, row in enumerate(rows)]


def numbered(count: int, **columns: Any) -> list[Prompt]:
    rows = [
        {"id": f"q{n}", "prompt": f"{n}+1=", "answer": str(n + 1), **columns} for n in range(count)
    ]
    return pool_of(rows)


def chosen(*places: int) -> Selection:
    return Selection([f"q{n}" for n in places], np.linspace(1, 0.5, len(places)))


def rows_in(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows as Hugging Face's loader gives them, which all these trainers use."""
    (file,) = folder.glob(f"{name}.*")
    kind = "json" if file.suffix == ".jsonl" else "parquet"
    cache = str(folder / "cache")
    return list(load_dataset(kind, data_files=str(file), split="train", cache_dir=cache))


def module_in(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_rewards", folder / "rewards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("trainer", trainers())
def test_an_export_holds_the_selection_in_order_and_as_large_a_control(
    trainer: str, tmp_path: Path
) -> None:
    exported = export_selection(chosen(5, 2, 9), numbered(12), trainer, tmp_path / "out")
    selected, control = (rows_in(tmp_path / "out", name) for name in ("selection", "control"))
    assert [row["prompt_id"] for row in selected] == ["q5", "q2", "q9"]
    assert [row["cropi_rank"] for row in selected] == [1, 2, 3]
    assert len({row["prompt_id"] for row in control}) == 3
    assert {row["answer"] for row in control} <= {str(n) for n in range(1, 13)}
    assert (exported.selected, exported.controls) == (3, 3)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["command"] == exported.command
    assert str(tmp_path / "out") in exported.command


@pytest.mark.parametrize("trainer", trainers())
def test_every_column_of_a_row_comes_back(trainer: str, tmp_path: Path) -> None:
    columns = {
        "data_source": "openai/gsm8k",
        "level": 3,
        "tags": ["a", "b"],
        "reward_model": {"style": "model", "ground_truth": "7", "rubric": "be brief"},
        "extra_info": {"split": "train", "index": 77},
        "cropi_rank": "theirs",
        "source": "elsewhere",
    }
    export_selection(chosen(0, 1), numbered(4, **columns), trainer, tmp_path / "out")
    for row in rows_in(tmp_path / "out", "selection"):
        assert row["original_cropi_rank"] == "theirs"
        assert (row["level"], row["tags"]) == (3, ["a", "b"])
        for name in ("reward_model", "extra_info"):
            assert columns[name].items() <= row[name].items()  # type: ignore[union-attr]
        assert "elsewhere" in (row["source"], row.get("original_source"))
        assert "openai/gsm8k" in (row["source"], row.get("data_source"))


@pytest.mark.parametrize(("answer", "result"), [
    ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
    ("so it is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ("x > 3", "x > 3"),
])  # fmt: skip
def test_other_graders_get_the_result_of_a_worked_solution(
    tmp_path: Path, answer: str, result: str
) -> None:
    pool = pool_of([{"id": "q0", "prompt": "?", "answer": answer}])
    cells = {"verl": "reward_model", "openrlhf": "label", "nemo-gym": "expected_answer"}
    for trainer, column in cells.items():
        export_selection(chosen(0), pool, trainer, tmp_path / trainer)
        (row,) = rows_in(tmp_path / trainer, "selection")
        cell = row[column]
        assert (cell["ground_truth"] if isinstance(cell, dict) else cell) == result
        assert row["answer"] == answer


def test_the_control_is_a_draw_from_the_whole_pool_that_its_seed_decides(tmp_path: Path) -> None:
    pool, ids = numbered(40), {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        export_selection(chosen(*range(10)), pool, "jsonl", tmp_path / name, seed=seed)
        ids[name] = [row["prompt_id"] for row in rows_in(tmp_path / name, "control")]
    assert ids["one"] == ids["again"] != ids["two"]
    export_selection(chosen(0), pool, "jsonl", tmp_path / "none", control=False)
    assert not list((tmp_path / "none").glob("control.*"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text("xy\u2028", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)


@settings(max_examples=80)
@given(rows=st.lists(st.dictionaries(st.sampled_from("uvw"), JSON), min_size=1, max_size=5))
def test_a_table_gives_back_the_rows_it_was_made_from(rows: list[dict[str, Any]]) -> None:
    rows = [{"id": str(n), **row} for n, row in enumerate(rows)]
    table, as_text = row_table(rows)
    for before, after in zip(rows, table.to_pylist(), strict=True):
        for name, value in after.items():
            if name in as_text:
                value = None if value is None else json.loads(value)
            assert without_none(value) == without_none(before.get(name))


def without_none(value: Any) -> Any:
    """Arrow gives all objects of a column the keys of each."""
    if isinstance(value, Mapping):
        return {key: without_none(each) for key, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


def test_columns_of_several_types_are_named_and_loaded(tmp_path: Path) -> None:
    values = [1, "two", {"three": 3}, {}]
    rows = [
        {"id": f"q{n}", "prompt": "x", "answer": str(n), "mixed": v} for n, v in enumerate(values)
    ]
    exported = export_selection(chosen(0, 1, 2, 3), pool_of(rows), "verl", tmp_path / "out")
    assert [note for note in exported.notes if "'mixed'" in note]
    loaded = rows_in(tmp_path / "out", "selection")
    assert [json.loads(row["mixed"]) for row in loaded] == values


def test_rewards_of_every_signature_are_those_of_the_verifier(tmp_path: Path) -> None:
    pool = numbered(4)
    texts, expected = ["1", "7", "3", "no"], [1.0, 0.0, 1.0, 0.0]
    ids = [prompt.prompt_id for prompt in pool]
    for trainer in ("trl", "verl", "openrlhf"):
        export_selection(chosen(0, 1, 2, 3), pool, trainer, tmp_path / trainer, verifiers=EXACT)
    trl = module_in(tmp_path / "trl").verifier
    assert trl(prompts=["?"] * 4, completions=texts, prompt_id=ids, level=[1] * 4) == expected
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert trl(prompts=["?"] * 4, completions=chats, prompt_id=ids) == expected
    score = module_in(tmp_path / "verl").compute_score
    rows = rows_in(tmp_path / "verl", "selection")
    scores = [
        score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])
        for row, text in zip(rows, texts, strict=True)
    ]
    assert scores == [{"score": reward, "unjudged": 0.0} for reward in expected]
    func = module_in(tmp_path / "openrlhf").reward_func
    asked = [prompt.content for prompt in pool]
    given = func([a + text for a, text in zip(asked, texts, strict=True)], asked, ids)
    assert given["rewards"].tolist() == expected


BROKEN = """
def reward(data_source, solution_str, ground_truth, extra_info):
    if solution_str == "raise":
        raise ValueError("cannot judge")
    return float(solution_str)
"""


def test_a_response_that_was_not_judged_is_not_wrong(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    broken = VerifiersConfig(default=f"{tmp_path}/broken.py:reward", workers=1)
    for trainer in ("trl", "verl"):
        export_selection(chosen(0), numbered(2), trainer, tmp_path / trainer, verifiers=broken)
    trl = module_in(tmp_path / "trl").verifier
    texts = ["0.2", "raise", "0.8"]
    assert trl(prompts=["?"] * 3, completions=texts, prompt_id=["q0"] * 3) == [0.2, 0.5, 0.8]
    scored = module_in(tmp_path / "verl").compute_score("s", "raise", "1", {"prompt_id": "q0"})
    assert scored == {"score": 0.0, "unjudged": 1.0}


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names 1 prompt not among the 2 given prompts"):
        export_selection(chosen(0, 7), numbered(2), "trl", tmp_path / "out")
    with pytest.raises(InputError, match="unknown trainer"):
        export_selection(chosen(0), numbered(2), "ppo", tmp_path / "out")
    chat = Prompt("q1", "2", "tests", messages=({"role": "user", "content": "1+1"},))
    with pytest.raises(InputError, match="takes one kind"):
        export_selection(chosen(0, 1), [numbered(1)[0], chat], "trl", tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that no export wrote"):
        export_selection(chosen(0), numbered(2), "trl", tmp_path / "theirs")
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_an_earlier_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_selection(chosen(0, 1), numbered(4), "openrlhf", out)
    export_selection(chosen(2), numbered(4), "verl", out)
    assert not list(out.glob("*.jsonl"))
    assert pq.read_table(out / "selection.parquet")["prompt_id"].to_pylist() == ["q2"]


def test_the_command_of_cropis_own_format_has_all_that_it_requires() -> None:
    start = Start(folder="ranked rows", model="pocket", size=3, chat=False)
    program, name, *arguments = shlex.split(Jsonl().command(start))
    context = typer.main.get_command(app).commands[name].make_context(name, arguments)
    assert program == "cropi"
    assert context.params["prompts"] == Path("ranked rows/selection.jsonl")


USERS_TRAINER = """
import sys

class Mine:
    suffix, read_in, chats, files = ".jsonl", "nothing", False, {}

    def row(self, prompt, place):
        return {"question": prompt.content}

    def command(self, start):
        return "mine"

class Exits(Mine):
    def row(self, prompt, place):
        sys.exit(3)

class Lists(Mine):
    def row(self, prompt, place):
        return [prompt.content]

class Silent(Mine):
    def command(self, start): ...

class Csv(Mine):
    suffix = ".csv"

class Bare:
    row = Mine.row
    command = Mine.command
"""


@pytest.mark.parametrize(("name", "message"), [
    ("Exits", r"row raised SystemExit: 3 \(line 15 of .*mine.py\)"),
    ("Lists", r"row returned \['2\+2'\]; it must return a dict"),
    ("Silent", "command returned None; it must return text"),
    ("Csv", r"has suffix '.csv'; it needs suffix \(.parquet or .jsonl\)"),
    ("Bare", "lacks suffix, read_in, chats, files; it needs"),
])  # fmt: skip
def test_a_format_of_the_users_that_misbehaves_is_named_and_leaves_nothing(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(USERS_TRAINER)
    sums, out = Prompt("p", "4", "sums", prompt="2+2"), tmp_path / "out"
    with pytest.raises(InputError, match=message):
        export_selection(Selection(["p"], np.ones(1)), [sums], f"{tmp_path}/mine.py:{name}", out)
    assert not out.exists()
