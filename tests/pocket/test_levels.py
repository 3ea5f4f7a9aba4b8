"""The `levels` filter of pocket's rows and of prompt sources."""

from __future__ import annotations

from collections import Counter

import pytest

from cropi.config import PromptSource, load_config
from cropi.errors import InputError
from cropi.pocket.tasks import SKILLS, available, rows
from cropi.prompts import load_source


def levels_of(skill: str) -> list[str]:
    return [level.name for level in SKILLS[skill].levels]


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_is_the_sum_of_its_levels(skill: str) -> None:
    counts = {level: available("pool", skill, [level]) for level in levels_of(skill)}
    everything = rows("pool", [skill], per_skill=available("pool", skill))
    assert counts == Counter(row["extra"]["level"] for row in everything)


def test_only_the_named_levels_are_drawn_and_in_the_order_of_the_whole_draw() -> None:
    wanted = ["length 4", "length 6"]
    drawn = rows("test", ["sort", "copy"], per_skill=300, seed=5, levels=wanted)
    assert {row["extra"]["level"] for row in drawn} == set(wanted)
    for skill in ("sort", "copy"):
        whole = rows("test", [skill], per_skill=1000, seed=5)
        expected = [row for row in whole if row["extra"]["level"] in wanted]
        assert [row for row in drawn if row["extra"]["skill"] == skill] == expected[:300]


def test_naming_all_levels_changes_nothing() -> None:
    named = rows("pool", ["shift"], per_skill=200, levels=levels_of("shift")[::-1])
    assert named == rows("pool", ["shift"], per_skill=200)


def test_a_source_gives_its_levels_alone() -> None:
    source = PromptSource(pocket=["shift"], levels=["length 3"], split="validation", size=40)
    prompts = load_source(source, seed=0)
    assert len(prompts) == 40
    assert {p.extra["level"] for p in prompts} == {"length 3"}
    assert {len(p.answer) for p in prompts} == {3}


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (
            {"pocket": ["sort"], "levels": ["length 9"]},
            ["unknown level of sort 'length 9'", "length 4, length 5, length 6"],
        ),
        (
            {"pocket": ["sort", "add"], "levels": ["length 4"]},
            ["unknown level of add 'length 4'", "2x2 digits"],
        ),
        ({"pocket": ["sort"], "levels": []}, ["levels=[]", "at least one level"]),
        (
            {"pocket": ["sort"], "levels": ["length 4", "length 4"]},
            ["levels=['length 4', 'length 4']", "each once"],
        ),
        (
            {"pocket": ["sort"], "levels": ["length 4"], "size": 99_999},
            ["per_skill=99999", "of these levels", "ask for 0 to"],
        ),
    ],
)
def test_levels_that_cannot_be_had_are_named(source: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_source(PromptSource.model_validate(source), seed=0)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_levels_of_another_kind_of_source_are_refused() -> None:
    pool = "prompts.pool=[{path: one.jsonl, levels: [length 4]}]"
    with pytest.raises(InputError, match="levels has no effect on a source of kind path"):
        load_config("pocket", [pool])
