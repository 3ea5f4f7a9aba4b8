"""Invariants of the generated tasks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cropi.pocket.tasks import SKILLS, SPLIT_SHARES, TARGETS, available, rows, split_of


def recompute(prompt: str) -> str:
    """Solve a prompt by another road than the package's: string walks and plain enumeration."""
    kind, body = prompt[0], prompt[1:-1]
    if kind in "abx":
        return str(eval(body))  # only digits and one of + - *
    if kind == "p":
        left, right = (int(part) for part in body.split("%"))
        while left >= right:
            left -= right
        return str(left)
    if kind == "g":
        left, right = body.split("?")  # equal lengths: text order is number order
        return {-1: "<", 0: "=", 1: ">"}[(left > right) - (left < right)]
    if kind == "m":
        return sorted(body.split(","))[-1]
    if kind == "n":
        return str(len(body[2:].split(body[0])) - 1)
    if kind == "d":
        return str(sum(digit * body.count(str(digit)) for digit in range(10)))
    if kind == "s":
        return "".join(str(digit) * body.count(str(digit)) for digit in range(10))
    if kind == "k":
        wheel = "01234567890123456789"
        return "".join(wheel[int(digit) + int(body[0])] for digit in body[2:])
    return {"c": body, "r": "".join(reversed(body))}[kind]


def test_splits_are_disjoint_for_every_seed_and_size() -> None:
    drawn = {
        split: {row["prompt"] for seed in (0, 1) for row in rows(split, per_skill=300, seed=seed)}
        for split in SPLIT_SHARES
    }
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values()))
    assert all(split_of(prompt) == split for split, prompts in drawn.items() for prompt in prompts)


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right_by_an_independent_recomputation(skill: str) -> None:
    table = rows("pool", [skill], per_skill=1000)
    assert all(row["answer"] == recompute(row["prompt"]) for row in table)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_has_enough_short_prompts(skill: str) -> None:
    prompts = SKILLS[skill].prompts()
    assert len(prompts) >= 5000
    assert max(map(len, prompts)) <= 16
    assert max(len(SKILLS[skill].answer(prompt)) for prompt in prompts) <= 6
    assert available("pool", skill) >= 1000
    assert available("validation", skill) >= 200
    assert available("test", skill) >= 2000


def test_the_first_character_shows_the_skill() -> None:
    firsts = {name: {prompt[0] for prompt in skill.prompts()} for name, skill in SKILLS.items()}
    assert all(len(characters) == 1 for characters in firsts.values())
    assert len(set.union(*firsts.values())) == len(SKILLS) == 12
    assert set(TARGETS) < set(SKILLS)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert rows("pool", per_skill=50, seed=3) == rows("pool", per_skill=50, seed=3)
    first, second = (rows("pool", per_skill=50, seed=seed) for seed in (3, 4))
    assert {row["prompt"] for row in first} != {row["prompt"] for row in second}


def test_rows_are_the_same_in_another_process() -> None:
    code = "from cropi.pocket.tasks import rows; print(rows('test', per_skill=5, seed=1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(rows("test", per_skill=5, seed=1))


def test_fewer_rows_are_a_prefix_of_more_rows_and_skills_share_equally() -> None:
    few, many = (rows("pool", per_skill=count) for count in (10, 40))
    assert many[: len(few)] == few
    assert [row["source"] for row in few[:12]] == [f"pocket/{name}" for name in SKILLS]


def test_prompt_ids_are_unique_and_follow_the_prompt() -> None:
    table = [row for split in SPLIT_SHARES for row in rows(split, per_skill=500)]
    assert len({row["prompt_id"] for row in table}) == len(table)
    assert all(
        row["prompt_id"] == f"pocket-{row['extra']['skill']}-{row['prompt'][:-1]}" for row in table
    )


def test_more_rows_than_exist_is_an_error_that_names_the_number() -> None:
    count = available("validation", "add")
    assert len(rows("validation", ["add"], per_skill=count)) == count
    with pytest.raises(ValueError, match=f"has {count} prompts"):
        rows("validation", ["add"], per_skill=count + 1)


@pytest.mark.parametrize(
    ("split", "skills"), [("train", None), ("pool", ["addition"]), ("pool", ["add", "add"])]
)
def test_unknown_and_repeated_names_are_errors(split: str, skills: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"add|pool"):
        rows(split, skills, per_skill=1)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, cropi.pocket; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
