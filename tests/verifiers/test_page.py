"""The examples of docs/verifiers.md are true."""

import re
from pathlib import Path

import pytest

from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.user import find_verifier

PAGE = Path(__file__).parents[2] / "docs/verifiers.md"
ROW = re.compile(r"\| `(\w+)` \| `(.+?)` \| `(.+?)` \| ([01]) \|")
ROWS = [
    match.groups() for match in map(ROW.fullmatch, PAGE.read_text("utf-8").splitlines()) if match
]

FUNCTIONS = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
REWARDS = dict(re.findall(r"(?m)^\| `(\w+)` \| ([-\d., ]+) \|$", PAGE.read_text("utf-8")))


@pytest.mark.parametrize(("name", "answer", "response", "reward"), ROWS)
def test_every_example_of_the_page_is_judged_as_it_says(
    name: str, answer: str, response: str, reward: str
) -> None:
    verifier = find_verifier(name)
    assert verifier(Prompt("p", answer, "s", prompt="q"), response) == float(reward)


def test_the_page_has_examples_of_every_verifier_that_reads_answers() -> None:
    assert {row[0] for row in ROWS} == {"math", "numeric", "choice", "exact"}


@pytest.mark.parametrize("name", REWARDS)
def test_every_function_of_the_page_gives_the_rewards_that_it_says(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text("\n".join(FUNCTIONS))
    prompt = Prompt("p", "12", "s", prompt="q", extra={"level": 3})
    items = [(prompt, text) for text in ("12", "so it is 12", "13")]
    with Judge(VerifiersConfig(default=f"{tmp_path}/rewards.py:{name}")) as judge:
        verdicts = judge.judge(items, [[1], [1, 2, 3, 4], [1]])
    assert [v.reward for v in verdicts] == [float(r) for r in REWARDS[name].split(",")]


def test_every_function_of_the_page_has_its_rewards_there() -> None:
    assert sorted(re.findall(r"def (\w+)", "".join(FUNCTIONS))) == sorted(REWARDS)
    assert len(FUNCTIONS) == len(REWARDS)
