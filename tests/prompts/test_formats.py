"""Rows of every usual format become the same prompts, and a bad row is named."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropi.config import PromptSource
from cropi.errors import InputError
from cropi.prompts import load_source
from cropi.prompts.formats import to_prompt
from cropi.schema import Prompt

CHAT = [{"role": "user", "content": "2+2?"}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": CHAT,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 7},
}


def convert(row: dict[str, Any], **settings: Any) -> Prompt:
    return to_prompt(row, PromptSource(path="x.jsonl", **settings), "x.jsonl row 1", "x")


def test_verl_rows_are_recognised_as_they_are() -> None:
    prompt = convert(VERL)
    assert (prompt.answer, prompt.source) == ("4", "openai/gsm8k")
    assert list(prompt.messages or ()) == CHAT
    assert prompt.extra["extra_info"]["index"] == 7
    assert prompt.extra["ability"] == "math"
    assert prompt.extra["reward_model"]["ground_truth"] == "4"


def test_objects_that_a_table_stores_as_text_are_those_objects() -> None:
    nested = ("prompt", "reward_model", "extra_info")
    row = {k: json.dumps(v) if k in nested else v for k, v in VERL.items()}
    assert convert(row) == convert(VERL)
    assert convert({**VERL, "meta": '{"gold": "5"}'}, answer="meta.gold").answer == "5"
    assert convert({**VERL, "extra_info": "{'index'"}).extra["extra_info"] == "{'index'"


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth", "target"])
@pytest.mark.parametrize("question", ["prompt", "question", "problem"])
def test_trl_and_common_columns_are_recognised(question: str, column: str) -> None:
    prompt = convert({question: "2+2?", column: 4, "level": 3})
    assert (prompt.prompt, prompt.answer, prompt.source) == ("2+2?", "4", "x")
    assert prompt.extra == {"level": 3, column: 4}


def test_trl_chats_and_cropis_rows_are_recognised() -> None:
    assert convert({"prompt": CHAT, "answer": "4"}).messages == tuple(CHAT)
    stored = {
        "prompt_id": "p",
        "prompt": None,
        "messages": CHAT,
        "answer": "4",
        "source": "sums",
        "extra": '{"level": 3}',
    }
    expected = Prompt("p", "4", "sums", messages=tuple(CHAT), extra={"level": 3})
    assert convert(stored) == expected


def test_columns_can_be_named_and_the_config_names_the_source_last() -> None:
    row = {"query": "2+2?", "gold": "so\n#### 4", "answer": "no", "source": "dataset"}
    prompt = convert(row, prompt="query", answer="gold", answer_regex="#### (.+)", source="config")
    assert (prompt.prompt, prompt.answer, prompt.source) == ("2+2?", "4", "config")
    assert prompt.extra == {"gold": "so\n#### 4", "answer": "no", "source": "dataset"}


def test_template_system_and_chat_shape_the_prompt() -> None:
    row = {"prompt": "{a} 2+2?", "answer": "4"}
    assert convert(row, template="Q: {prompt} A:").prompt == "Q: {a} 2+2? A:"
    chat = convert(row, system="Be brief.", template="Q: {prompt}").messages
    assert chat == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: {a} 2+2?"},
    )
    assert convert(row, chat=True).messages == ({"role": "user", "content": "{a} 2+2?"},)
    lead = [{"role": "system", "content": "old"}, *CHAT]
    shaped = convert({"prompt": lead, "answer": "4"}, system="new", template="{prompt}!").messages
    assert [m["content"] for m in shaped or ()] == ["new", "2+2?!"]


def test_nested_numpy_and_dates_become_plain_json() -> None:
    row = {
        "prompt": np.array(CHAT, dtype=object),
        "answer": np.int64(4),
        "scores": np.array([[1.0, np.nan]]),
        "made": datetime.date(2026, 1, 2),
        "missing": float("nan"),
    }
    prompt = convert(row)
    assert (prompt.answer, prompt.messages) == ("4", tuple(CHAT))
    assert prompt.extra["scores"] == [[1.0, None]]
    assert "missing" not in prompt.extra
    json.dumps(prompt.extra)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "q", "level": 1}, {}, r"row 1 has no answer.*has the columns level, prompt"),
        ({"prompt": "q", "answer": " "}, {}, r"row 1 has no answer"),
        ({"prompt": "q", "answer": float("nan")}, {}, r"row 1 has no answer"),
        ({"text": "q", "answer": "1"}, {}, r"row 1 has no question.*answer, text"),
        ({"prompt": "q", "answer": "1"}, {"prompt": "query"}, r"column query .*answer, prompt"),
        ({"prompt": "q", "answer": "1"}, {"answer": "gold"}, r"column gold .*answer, prompt"),
        ({"prompt": " ", "answer": "1"}, {}, r"row 1, column 'prompt' holds an empty prompt"),
        ({"prompt": 5, "answer": "1"}, {}, r"holds 5; give text or a list"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, {}, r"message \{'role': 'user'\}"),
        ({"prompt": [], "answer": "1"}, {}, r"holds \[\]"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "4"}], "answer": "4"},
            {},
            r"last message is the assistant's",
        ),
        ({"prompt": "q", "answer": "1"}, {"answer_regex": "#### (.+)"}, r"matches nothing.*'1'"),
        ({"prompt": "q", "answer": "1"}, {"answer_regex": "(("}, r"not a regular expression"),
        ({"prompt": "q", "answer": "1"}, {"answer_regex": "1"}, r"has no group"),
        (
            {"prompt": "q", "answer": "a" * 60 + "b"},
            {"answer_regex": "(a|aa)+$"},
            r"longer than 1 s in column 'answer' .*without nested repeats",
        ),
        ({"prompt": "q", "answer": "1", "image": b"x"}, {}, r"'image' holds b'x', an image or"),
        ({"prompt": "q", "answer": "1", "plot": b"x"}, {}, r"'plot' holds a value of type bytes"),
        ({"prompt": "q", "answer": "1"}, {"chat": False, "system": "s"}, r"remove one of them"),
        ({"prompt": CHAT, "answer": "1"}, {"chat": False}, r"asks for text"),
        ({"prompt": "q", "answer": "1", "id": 1.5}, {}, r"'id' holds 1.5"),
    ],
)
def test_a_bad_row_is_named_with_what_is_allowed(
    row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert(row, **settings)
    assert "\n" not in str(caught.value)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_files_of_every_kind_give_the_same_prompts(tmp_path: Path, kind: str) -> None:
    rows = [VERL, {**VERL, "prompt": [{"role": "user", "content": "line\u2028break"}]}]
    path = write(tmp_path / f"sums.{kind}", rows)
    prompts = load_source(PromptSource(path=str(path)), 0)
    assert prompts == [convert(r) for r in rows]


def test_relative_paths_are_also_looked_up_beside_the_config(tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", [VERL])
    assert len(load_source(PromptSource(path="sums.jsonl"), 0, tmp_path)) == 1
    with pytest.raises(InputError, match=r"gone\.jsonl or .*gone\.jsonl is not a file"):
        load_source(PromptSource(path="gone.jsonl"), 0, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "q", "answer": "1"}\n\n{"prompt": "q"}\n',
            r"a\.jsonl row 3 has no",
        ),
        ("b.jsonl", '{"prompt": "q", "answer": "1"}\n{"pro', r"b\.jsonl row 2 is not valid JSON"),
        ("c.json", '{"prompt": "q"}', r"c\.json holds JSON of type dict without a list of rows"),
        ("d.json", "[1]", r"d\.json row 1 is of type int"),
        ("e.jsonl", "", r"e\.jsonl is empty"),
        ("f.jsonl", "\n\n", r"f\.jsonl holds no rows"),
        ("g.xlsx", "x", r"ends in '\.xlsx'"),
        ("h.parquet", "x", r"h\.parquet is not a readable Parquet"),
    ],
)
def test_a_damaged_file_is_named_with_its_row(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_source(PromptSource(path=str(tmp_path / name)), 0)


def test_limit_draws_with_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "answer": "1"} for i in range(50)]
    source = PromptSource(path=str(write(tmp_path / "n.jsonl", rows)), limit=10)
    first, again, other = (load_source(source, seed) for seed in (1, 1, 2))
    numbers = [int(p.prompt or "") for p in first]
    assert first == again != other
    assert numbers == sorted(numbers)
    assert len(numbers) == 10


def test_pocket_skills_are_loaded_and_unknown_ones_named() -> None:
    prompts = load_source(PromptSource(pocket=["add", "sort"], size=3), 0)
    assert [p.source for p in prompts].count("pocket/add") == 3
    tests = load_source(PromptSource(pocket=["all"], size=1, split="test"), 0)
    assert len(tests) == 12
    with pytest.raises(InputError, match="did you mean 'sort'"):
        load_source(PromptSource(pocket=["sorts"]), 0)
    with pytest.raises(InputError, match="unknown split"):
        load_source(PromptSource(pocket=["add"], split="tests"), 0)


def test_reasoning_gym_rows_keep_their_entry_and_depend_on_the_seed() -> None:
    pytest.importorskip("reasoning_gym")
    source = PromptSource(
        reasoning_gym="basic_arithmetic", size=3, options={"min_terms": 2, "max_terms": 2}
    )
    first, again, other = (load_source(source, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {p.source for p in first} == {"basic_arithmetic"}
    entry = first[0].extra["reasoning_gym"]["entry"]
    assert (entry["question"], entry["answer"]) == (first[0].prompt, first[0].answer)
    assert load_source(PromptSource(reasoning_gym="rubiks_cube", size=1), 0)[0].answer == "any"


def test_a_hub_that_cannot_be_reached_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"'openai/gsm8k'.*Couldn't reach.*network"):
        load_source(PromptSource(hub="openai/gsm8k", subset="main"), 0)


def test_hub_datasets_with_images_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    kinds = {"question": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    table = datasets.Dataset.from_dict(
        {"question": ["q"], "images": [[]]}, datasets.Features(kinds)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    with pytest.raises(InputError, match=r"geo \(train\) row 1: column 'images' .* type Image"):
        load_source(PromptSource(hub="geo"), 0)


def test_hub_rows_are_named_after_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"question": "2+2?", "answer": "#### 4"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    source = PromptSource(hub="openai/gsm8k", answer_regex="#### (.+)")
    (prompt,) = load_source(source, 0)
    assert (prompt.prompt, prompt.answer, prompt.source) == ("2+2?", "4", "openai/gsm8k")
