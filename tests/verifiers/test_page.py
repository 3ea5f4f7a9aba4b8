"""The examples of docs/verifiers.md are true."""

import re
from pathlib import Path

import pytest

from cropi.schema import Prompt
from cropi.verifiers.user import find_verifier

PAGE = Path(__file__).parents[2] / "docs/verifiers.md"
ROW = re.compile(r"\| `(\w+)` \| `(.+?)` \| `(.+?)` \| ([01]) \|")
ROWS = [
    match.groups() for match in map(ROW.fullmatch, PAGE.read_text("utf-8").splitlines()) if match
]


@pytest.mark.parametrize(("name", "answer", "response", "reward"), ROWS)
def test_every_example_of_the_page_is_judged_as_it_says(
    name: str, answer: str, response: str, reward: str
) -> None:
    verifier = find_verifier(name)
    assert verifier(Prompt("p", answer, "s", prompt="q"), response) == float(reward)


def test_the_page_has_examples_of_every_verifier_that_reads_answers() -> None:
    assert {row[0] for row in ROWS} == {"math", "numeric", "choice", "exact"}
