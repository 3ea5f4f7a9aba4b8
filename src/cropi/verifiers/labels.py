"""Verdicts as a table to correct by hand, and how often a verifier disagrees with the corrections.

The table is CSV. A cell that a spreadsheet would run as a formula starts with an apostrophe, which
is taken off again when the table is read.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cropi.errors import InputError
from cropi.prompts.csv_rows import read_csv
from cropi.schema import Prompt
from cropi.store.files import atomic_write, require_file
from cropi.verifiers.explanation import ExplainedVerdict
from cropi.verifiers.runtime.response_judge import Judge

COLUMNS = ("prompt_id", "response_index", "source", "answer", "statement", "stage", "reward",
           "label", "response")  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
_WORDS = {"yes": 1.0, "true": 1.0, "right": 1.0, "no": 0.0, "false": 0.0, "wrong": 0.0}
NEEDED = ("answer", "reward", "label", "response")
"""Columns that a table of labels has to have."""
LONGEST_INDEX = 10
"""Digits of a response's index."""


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response, the verifier's reward and a person's; None without one."""

    prompt: Prompt
    response_index: int
    response: str
    reward: float | None
    label: float | None


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """How a verifier agrees with labels; false positives are rewards that should not be."""

    right: int
    false_positives: list[LabelledResponse]
    false_negatives: list[LabelledResponse]
    unlabelled: int
    not_judged: int


def write_labels(path: Path, verdicts: Sequence[ExplainedVerdict]) -> None:
    """Write verdicts to correct in the column `label`, atomically."""
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows([_safe(cell) for cell in _cells(v)] for v in verdicts)


def _cells(explained: ExplainedVerdict) -> list[str]:
    prompt, decision, verdict = explained.prompt, explained.decision, explained.verdict
    reward = f"{verdict.reward:zg}" if verdict.status == "ok" else verdict.status
    return [
        prompt.prompt_id,
        str(explained.response_index),
        prompt.source,
        prompt.answer,
        decision.statement if decision else "",
        decision.stage if decision else verdict.detail,
        reward,
        reward if verdict.status == "ok" else "",
        explained.response,
    ]


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def read_labels(path: Path) -> list[LabelledResponse]:
    """Read a table of labels.

    A label is a reward, or yes, no, true, false, right or wrong; rows without one do not count.
    Raises InputError naming file, row and column.
    """
    require_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = read_csv(handle, str(path), None, NEEDED)
            return [_labelled(row, f"{path}, row {number}") for number, row in rows]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not CSV in UTF-8: {error}; save it as that") from error


def _labelled(row: Mapping[str, str], where: str) -> LabelledResponse:
    """A row, whose empty cells are missing."""
    cells = dict.fromkeys(COLUMNS, "") | {n: cell.removeprefix("'") for n, cell in row.items()}
    source = cells["source"] or "labels"
    prompt = Prompt(cells["prompt_id"] or where, cells["answer"], source, prompt="")
    reward, index = cells["reward"].strip(), cells["response_index"].strip()
    return LabelledResponse(
        prompt,
        int(index) if index.isdecimal() and len(index) < LONGEST_INDEX else 0,
        cells["response"],
        None if reward in ("timeout", "error", "") else _number(reward, f"{where}: reward"),
        _number(cells["label"], f"{where}: label") if cells["label"].strip() else None,
    )


def _number(text: str, where: str) -> float:
    word = text.strip().casefold()
    try:
        number = _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InputError(f"{where} {text!r} is not a reward; write a number, yes or no, or nothing")
    return number


def judged_again(labelled: Sequence[LabelledResponse], judge: Judge) -> list[LabelledResponse]:
    """Return the rows with the rewards that a judge gives now."""
    verdicts = judge.judge([(row.prompt, row.response) for row in labelled])
    rewards = [verdict.reward if verdict.status == "ok" else None for verdict in verdicts]
    return [replace(row, reward=r) for row, r in zip(labelled, rewards, strict=True)]


def label_agreement(
    labelled: Sequence[LabelledResponse], threshold: float | None = None
) -> LabelAgreement:
    """Compare rewards with labels; both pass above 0, or from `threshold` on."""

    def passes(reward: float) -> bool:
        return reward > 0 if threshold is None else reward >= threshold

    right = 0
    positives: list[LabelledResponse] = []
    negatives: list[LabelledResponse] = []
    for row in labelled:
        if row.label is None or row.reward is None:
            continue
        if passes(row.reward) == passes(row.label):
            right += 1
        else:
            (positives if passes(row.reward) else negatives).append(row)
    unlabelled = sum(row.label is None for row in labelled)
    not_judged = sum(row.label is not None and row.reward is None for row in labelled)
    return LabelAgreement(right, positives, negatives, unlabelled, not_judged)
