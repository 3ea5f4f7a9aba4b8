"""The suite `puzzles`: answers by other means, shared facts, a user's grader."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from puzzles.corpus import slip
from puzzles.grader import after_equals
from puzzles.tasks import PUZZLES, STOPS
from suite.skills import Suite

PLAIN = {"cap", "log", "pol", "com", "rle", "brk", "hex"}
"""Skills without a worked chain."""


def facts_of(skill: str) -> set[str]:
    """The kinds and names of the facts that a skill's sampled chains are made of."""
    written: set[str] = set()

    def write(kind: str, fact: str, right: str) -> str:
        written.add(f"{kind} {fact}")
        return right

    for row in PUZZLES.rows("pool", skill)[:300]:
        PUZZLES.skills[skill].chain(row["prompt"], write)
    return written


@pytest.mark.parametrize(
    ("skill", "prompt", "chain"),
    [
        ("mod", "4725%7:", "4530=0"),
        ("div", "472/7:", "046573=067"),
        ("cap", "4976!7:", "4776"),
        ("log", "t&f|t^f&t|f:", "ftttt"),
        ("pol", "^|&|tftft:", "tttf"),
        ("piv", "d:hcafb:", "><<><=cabhf"),
        ("dic", "bead?beca:", "ac>=bead"),
        ("tab", "bdacfe:c:", "abdc=c"),
        ("com", "bdaca.cabde:", "adcbc"),
        ("rle", "aaabccdddd:", "a3b1c2d4"),
        ("brk", "([]{<>(<:", ">)})"),
        ("hex", "x3fa:", "001111111010"),
    ],
)
def test_chains_by_hand(skill: str, prompt: str, chain: str) -> None:
    assert PUZZLES.skills[skill].solution(prompt) == chain


def running(values: str, operators: str) -> str:
    """All prefixes of an expression, each evaluated by Python from left to right."""
    spelled = [{"t": "True", "f": "False"}[value] for value in values]
    written = spelled[0]
    for operator, value in zip(operators, spelled[1:], strict=True):
        written = f"({written} {operator} {value})"
    ends = [match.end() for match in re.finditer(r"\)", written)]
    return "".join(
        "ft"[eval(written[len(ends) - place - 1 : end])]  # whose brackets were opened last
        for place, end in enumerate(ends)
    )


def infix(prompt: str) -> str:
    return running("".join(re.findall("[tf]", prompt)), "".join(re.findall("[&|^]", prompt)))


def prefix(prompt: str) -> str:
    operators, values = re.fullmatch(r"([&|^]+)([tf]+):", prompt).groups()  # type: ignore[union-attr]
    return running(values, operators[::-1])


def partition(prompt: str) -> str:
    return "".join(sorted(prompt[2:-1], key=lambda letter: letter >= prompt[0]))


def four_times(prompt: str) -> str:
    table, letter = prompt[:-1].split(":")
    leads = dict(zip(STOPS, table, strict=True))
    return leads[leads[leads[leads[letter]]]]


def compose(prompt: str) -> str:
    first, second = prompt[:-1].split(".")
    return first.translate(str.maketrans(STOPS[:5], second))


def brackets(prompt: str) -> str:
    text = prompt[:-1]
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    return text[::-1].translate(str.maketrans("([{<", ")]}>"))


def numbers(prompt: str) -> tuple[str, int]:
    digits, key = re.findall(r"\d+", prompt)
    return digits, int(key)


def remainder(prompt: str) -> str:
    digits, key = numbers(prompt)
    return str(int(digits) % key)


def quotient(prompt: str) -> str:
    digits, key = numbers(prompt)
    return f"{int(digits) // key:03d}"


def capped(prompt: str) -> str:
    digits, key = numbers(prompt)
    return re.sub(f"[{key}-9]", str(key), digits)


def run_lengths(prompt: str) -> str:
    return re.sub(r"(\w)\1*", lambda run: run[1] + str(len(run[0])), prompt[:-1])


SOLVED: dict[str, Callable[[str], str]] = {
    "mod": remainder,
    "div": quotient,
    "cap": capped,
    "log": infix,
    "pol": prefix,
    "piv": partition,
    "dic": lambda prompt: min(prompt[:-1].split("?")),
    "tab": four_times,
    "com": compose,
    "rle": run_lengths,
    "brk": brackets,
    "hex": lambda prompt: f"{int('1' + prompt[1:-1], 16):b}"[1:],
}


@pytest.mark.parametrize("skill", PUZZLES.skills)
def test_answers_are_those_of_another_solution(skill: str) -> None:
    rows = PUZZLES.rows("test", skill)[:500] + PUZZLES.rows("pool", skill)[:300]
    assert [row["answer"] for row in rows] == [SOLVED[skill](row["prompt"]) for row in rows]


def test_skills_that_help_share_facts_and_skills_that_look_alike_do_not() -> None:
    partners = [{"mod", "div"}, {"log", "pol"}, {"piv", "dic"}, {"tab", "com"}]
    facts = {skill: facts_of(skill) for skill in PUZZLES.skills}
    for one in facts:
        for other in facts:
            shares = one == other or {one, other} in partners
            assert bool(facts[one] & facts[other]) is shares, (one, other)


def test_a_slip_is_the_next_character_of_its_kind() -> None:
    assert [slip("rest", "6"), slip("run", "9"), slip("bits", "0011")] == ["7", "0", "0010"]
    assert [slip("gate", "f"), slip("order", ">"), slip("lead", "f")] == ["t", "<", "a"]
    assert [slip("close", ")"), slip("close", ">")] == ["]", ")"]


def test_a_slip_is_carried_on_so_that_the_chain_is_consistent() -> None:
    def write(kind: str, fact: str, right: str) -> str:
        return {"47%7": "6", "0c": "t"}.get(fact, right)

    assert PUZZLES.skills["mod"].chain("4725%7:", write) == "4662=2"


def test_the_grader_reads_what_follows_the_last_equals_sign() -> None:
    chains = ["4530=0", "0", "4530", "1=2=0", "4530=1", "", "4530=0 "]
    grades = [after_equals("puzzles/mod", chain, "0") for chain in chains]
    assert grades == [1, 0, 0, 1, 0, 0, 1]


def test_chains_without_work_are_graded_as_they_are() -> None:
    suite: Suite = PUZZLES
    for name, skill in suite.skills.items():
        row = suite.rows("test", name)[0]
        assert (suite.mark not in skill.solution(row["prompt"])) is (name in PLAIN)
