"""Ids are stable and unique, and what sets share is handled and reported."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from cropi.config import PromptsConfig
from cropi.errors import InputError
from cropi.prompts import PromptSets, load_prompt_sets, read_prompts, write_prompts
from cropi.prompts.overlap import normalised


def source(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"path": str(path), **settings}


def asked(*questions: str) -> list[dict[str, Any]]:
    return [{"prompt": q, "answer": "1"} for q in questions]


def load(pool: Any, **settings: Any) -> PromptSets:
    return load_prompt_sets(PromptsConfig.model_validate({"pool": pool, **settings}), 0)


def test_content_ids_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = asked("a", "b", "c")
    ids = {p.prompt: p.prompt_id for p in load([source(tmp_path, "x", rows)]).pool}
    turned = {p.prompt: p.prompt_id for p in load([source(tmp_path, "x", rows[::-1])]).pool}
    assert ids == turned
    assert len(set(ids.values())) == 3


def test_duplicates_by_content_are_kept_once_and_counted(tmp_path: Path) -> None:
    rows = [*asked("a", "b", "a"), {"prompt": "b", "answer": "1", "id": 9}]
    sets = load([source(tmp_path, "x", rows), source(tmp_path, "y", asked("a"))])
    assert [p.prompt for p in sets.pool] == ["a", "b"]
    assert sets.notes.duplicates == {"pool": 3}
    assert "3 duplicates of the pool left out" in sets.notes.lines()


def test_a_question_is_one_however_unicode_writes_it(tmp_path: Path) -> None:
    composed, decomposed = "Où est Zoë ?", unicodedata.normalize("NFD", "Où est Zoë ?")
    pools = [
        load([source(tmp_path, str(n), asked(*texts), source="one")]).pool
        for n, texts in enumerate([(composed, decomposed), (decomposed,)])
    ]
    assert [[p.prompt for p in pool] for pool in pools] == [[composed], [decomposed]]
    assert pools[0][0].prompt_id == pools[1][0].prompt_id


def test_one_question_with_two_answers_keeps_both_and_says_so(tmp_path: Path) -> None:
    sets = load([source(tmp_path, "x", [*asked("a"), {"prompt": "a", "answer": "2"}])])
    assert len({p.prompt_id for p in sets.pool}) == 2
    assert sets.notes.disputed == {"pool": 1}


def test_one_given_id_on_two_prompts_is_refused(tmp_path: Path) -> None:
    rows = [{"id": 7, "prompt": q, "answer": "1"} for q in "ab"]
    with pytest.raises(
        InputError, match=r"set pool: two different prompts have the id '7'.*'a'.*'b'"
    ):
        load([source(tmp_path, "x", rows)])


def test_ids_shared_by_different_sets_are_reported(tmp_path: Path) -> None:
    pool = source(tmp_path, "x", [{"id": 7, "prompt": "a", "answer": "1"}])
    test = source(tmp_path, "y", [{"id": 7, "prompt": "b", "answer": "1"}])
    sets = load([pool], test={"y": [test]})
    assert sets.notes.shared_ids == 1
    assert len(sets.pool) == 1


def overlapping(folder: Path) -> dict[str, Any]:
    template = {"template": "Q: {prompt}\nA:"}
    return {
        "pool": [source(folder, "x", asked("What is 2+2?", "  what IS\n2+2", "new", "old"))],
        "validation": {"sums": [source(folder, "v", asked("What is 2+2?"), **template)]},
        "test": {"sums": [source(folder, "t", asked("WHAT IS 2+2", "OLD.", "else"), chat=True)]},
    }


def test_overlap_by_exact_and_normalised_text_is_removed_and_counted(tmp_path: Path) -> None:
    sets = load(**overlapping(tmp_path))
    assert [p.prompt for p in sets.pool] == ["new"]
    overlap = {name: (o.exact, o.normalised) for name, o in sets.notes.overlap.items()}
    assert overlap == {"validation sums": (1, 1), "test sums": (0, 3)}
    assert sets.notes.overlap_removed == 3
    assert sets.notes.between["validation sums and test sums"].total == 1
    assert len(sets.test["sums"]) == 3
    assert sets.notes.sizes == {"pool": 1, "validation sums": 1, "test sums": 3}
    text = "\n".join(sets.notes.lines())
    assert "3 pool prompts also in test sums (3 of them up to case" in text
    assert "1 prompt in both validation sums and test sums" in text
    json.dumps(sets.notes.as_dict())


def test_overlap_can_be_kept_or_refused_and_is_reported_either_way(tmp_path: Path) -> None:
    unchanged = load(**overlapping(tmp_path), overlap="keep")
    assert len(unchanged.pool) == 4
    assert unchanged.notes.overlap["test sums"].total == 3
    with pytest.raises(InputError, match=r"3 pool prompts are also in validation sums, test sums"):
        load(**overlapping(tmp_path), overlap="error")


def test_a_pool_that_overlap_empties_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    pool = [source(tmp_path, "x", asked("a"))]
    with pytest.raises(InputError, match=r"all 1 pool prompts are also in test t"):
        load(pool, test={"t": [source(tmp_path, "y", asked("A!"))]})
    with pytest.raises(InputError, match=r"set validation v has no prompts"):
        load(pool, validation={"v": []})


@pytest.mark.parametrize(
    ("left", "right"),
    [("Straße?", "STRASSE"), ("\ufb01x  it", " Fix it!"), ("«a»", "a"), ("???", "???")],
)
def test_normalising_folds_case_forms_spaces_and_edges(left: str, right: str) -> None:
    assert normalised(left) == normalised(right) != ""


def test_normalising_keeps_signs_inside_and_at_the_ends_of_formulas() -> None:
    assert len({normalised(t) for t in ("a-b", "a+b", "ab", "a<", "a=", "a")}) == 6


def test_the_same_seed_loads_the_same_sets_and_another_draws_others() -> None:
    config = {"pool": [{"pocket": ["all"], "size": 5}], "test": {"t": [{"pocket": ["add"]}]}}
    config["test"]["t"][0] |= {"split": "test", "limit": 20}  # type: ignore[index, operator]
    parsed = PromptsConfig.model_validate(config)
    first, again, other = (load_prompt_sets(parsed, seed) for seed in (1, 1, 2))
    assert (first.pool, first.test) == (again.pool, again.test)
    assert first.pool != other.pool
    assert first.notes.lines() == []


def test_stored_prompts_come_back_equal(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "answer": "1", "deep": {"list": [1, None, "x"]}},
        {"prompt": [{"role": "user", "content": "b"}], "answer": "2", "source": "s"},
    ]
    prompts = load([source(tmp_path, "x", rows)]).pool
    write_prompts(tmp_path / "p.parquet", prompts, {"cropi.inputs_fingerprint": "abc"})
    assert read_prompts(tmp_path / "p.parquet") == prompts
    again = load([{"path": str(tmp_path / "p.parquet")}]).pool
    assert again == prompts


def test_a_table_that_is_no_prompt_store_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"lacks the columns prompt_id.*it has x"):
        read_prompts(tmp_path / "p.parquet")
