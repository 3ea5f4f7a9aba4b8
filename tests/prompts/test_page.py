"""The page about prompts says what the code does."""

import json
import re
from pathlib import Path

import pytest

from cropi.cli.prompt_options import NAMES
from cropi.config import PromptSource
from cropi.prompts.formats import ID_COLUMNS, to_prompt
from cropi.prompts.row_columns import ANSWER_COLUMNS, QUESTION_COLUMNS
from cropi.prompts.row_files import COMPRESSED, ENDINGS

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `(\{.*\})` \| `(.*)` \| `(.*)` \|$", PAGE, re.MULTILINE)


def names_in(row: str) -> tuple[str, ...]:
    """The code words in the last cell of the table row that begins so."""
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE, re.MULTILINE)
    return tuple(re.findall(r"`([^`]+)`", line))


def test_the_columns_of_the_page_are_those_that_are_recognised_in_that_order() -> None:
    assert names_in("question") == QUESTION_COLUMNS
    assert names_in("answer") == ("reward_model.ground_truth", *ANSWER_COLUMNS)
    assert names_in("id") == ID_COLUMNS


def test_the_page_names_every_kind_of_file_and_every_option() -> None:
    table = PAGE[PAGE.index("## Files") : PAGE.index("## Columns")]
    assert {*ENDINGS, *COMPRESSED} <= set(re.findall(r"`(\.\w+)`", table))
    options = {name.partition("/")[0] for name in NAMES.values()}
    assert {o for o in options if f"`{o}`" not in PAGE} <= {"--template", "--system"}


@pytest.mark.parametrize(("row", "question", "answer"), EXAMPLES)
def test_the_examples_of_the_page_are_read_as_it_says(row: str, question: str, answer: str) -> None:
    prompt = to_prompt(json.loads(row), PromptSource(path="x.jsonl"), "row", "x")
    assert (prompt.content, prompt.answer) == (question, answer)
