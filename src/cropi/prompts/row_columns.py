"""Which columns of a row hold the question and the answer, and what to tell where that is a guess.

Names are recognised in the order of the lists below, in any case, with spaces for underscores. A
name that the config gives is taken as it is, and may lead into an object: `reward_model.style`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cropi.prompts.json_values import parsed_json
from cropi.text import plural, shown

Cells = dict[str, Any]
"""A row: JSON values by column name, empty cells left out."""

QUESTION_COLUMNS = ("prompt", "messages", "question", "problem", "input", "query")
ANSWER_COLUMNS = (
    "final_answer",
    "expected_answer",
    "answer",
    "ground_truth",
    "target",
    "label",
    "solution",
)
_SENTENCES = re.compile(r"[.!?]\s+\S|\n\s*\S")
_WORD = re.compile(r"[^\W\d_]{2,}")
_RESULT = re.compile(r"####|\\boxed|<answer>|answer\s*(?:is\b|[:=])", re.IGNORECASE)
_PART_OF_WORD = re.compile(r"[\w.]")
_GOES_ON = re.compile(r"\w|\.\d")
FEWEST_WORDS = 5
"""Words of a worked solution; fewer may be a list of answers."""


@dataclass(slots=True)
class RowNotes:
    """What a reader should know of how a source's rows were read: counts, each with an example."""

    origin: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    answer_columns: Counter[str] = field(default_factory=Counter)

    def add(self, finding: str, where: str, content: str = "") -> None:
        """Count a row of which `finding` is true: the one at `where`, with that content.

        Folders are left out: notes are stored, and equal runs in two folders have equal notes.
        """
        self.counts[finding] += 1
        self.examples.setdefault(finding, f"{_without_folder(where)}{content}")

    def lines(self) -> list[str]:
        """One sentence per finding."""
        origin = _without_folder(self.origin)
        lines = [
            f"{origin}: {finding}: {plural(count, 'row')} (the first: {example})"
            for (finding, count), example in zip(
                self.counts.items(), self.examples.values(), strict=True
            )
        ]
        if len(self.answer_columns) > 1:
            columns = [f"{c} ({plural(n, 'row')})" for c, n in self.answer_columns.most_common()]
            lines.append(
                f"{origin}: the answers come from several columns, {', '.join(columns)}; name "
                "one with `answer` if that is not meant"
            )
        return lines


def _without_folder(place: str) -> str:
    return place.rpartition("/")[2]


def cell_of(cells: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or inside one: `reward_model.ground_truth`. None if there is none."""
    if name in cells:
        return cells[name]
    column, dot, rest = name.partition(".")
    inner = parsed_json(cells.get(column)) if dot else None
    return cell_of(inner, rest) if isinstance(inner, dict) else None


def recognised(cells: Cells, names: tuple[str, ...]) -> list[str]:
    """The row's columns that have one of the usual names, in the order of `names`."""
    by_name: dict[str, str] = {}
    for column in cells:
        by_name.setdefault(_folded(column), column)
    return [by_name[name] for name in names if name in by_name]


@lru_cache(maxsize=4096)
def _folded(column: str) -> str:
    """A column's name as the lists above write names."""
    return re.sub(r"[\s-]+", "_", column.strip()).casefold()


def note_other_columns(
    cells: Cells, column: str, value: Any, names: tuple[str, ...], notes: RowNotes, where: str
) -> None:
    """Note columns with a usual name that hold something else than the one that was taken."""
    key, meaning = ("prompt", "question") if names is QUESTION_COLUMNS else ("answer", "answer")
    for other in recognised(cells, names):
        if other != column and not _agree(value, cells[other]):
            notes.add(
                f"column {shown(other, 60)} holds another {meaning} than {shown(column, 60)}, "
                f"which is taken; name the right one with `{key}`",
                where,
                f": {shown(value, 60)} and {shown(cells[other], 60)}",
            )


def note_unseen_choices(cells: Cells, content: str, notes: RowNotes, where: str) -> None:
    """Note choices in a column of their own that the question does not show."""
    for column in recognised(cells, ("choices", "options")):
        values = cells[column]
        choices = list(values.values()) if isinstance(values, dict) else values
        if isinstance(choices, list) and any(str(choice) not in content for choice in choices):
            notes.add(
                f"column {shown(column, 60)} has choices that the question does not show; write "
                "them into it",
                where,
                f": {shown(choices, 60)}",
            )


def _agree(first: Any, second: Any) -> bool:
    """Whether two cells say the same, or one holds the other as a solution holds its result."""
    texts = [" ".join(str(value).split()).casefold() for value in (first, second)]
    short, long = sorted(texts, key=len)
    if short == long or _is_word_of(short, long):
        return True
    try:
        return float(short) == float(long)
    except ValueError:
        return False


def _is_word_of(part: str, text: str) -> bool:
    """Whether a text has the part as whole words: `4` is one of `is 4.`, not of `4.5`."""
    start = text.find(part)
    while start >= 0:
        end = start + len(part)
        if not _PART_OF_WORD.fullmatch(text[max(start - 1, 0) : start]) and not _GOES_ON.match(
            text, end
        ):
            return True
        start = text.find(part, start + 1)
    return False


def note_worked_solution(column: str, answer: str, notes: RowNotes, where: str) -> None:
    """Note an answer of several sentences that does not say which of them is the result."""
    if (
        _SENTENCES.search(answer)
        and len(_WORD.findall(answer)) >= FEWEST_WORDS
        and any(map(str.isdigit, answer))
        and not _RESULT.search(answer)
    ):
        notes.add(
            f"a worked solution in column {shown(column, 60)} marks no result, and verifiers of "
            "numbers take what it ends with, even if that is a check; pick the result with "
            "`answer_regex`, or another column with `answer`",
            where,
            f" ends with {shown(answer[-60:], 80)}",
        )
