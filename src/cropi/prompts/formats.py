"""From a row of some dataset to a `Prompt`: cropi's own rows, TRL's, verl's, or columns by name.

A format is recognised by its columns alone, in this order: the names given in the config, verl's
`reward_model`, then the usual names of questions and answers. Every cell that the prompt's own
fields do not hold stays in `extra`, so that a reward function finds every column it had before.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import regex

from cropi.errors import InputError
from cropi.prompts.settings import PromptSource
from cropi.schema import Message, Prompt, content_id
from cropi.text import DEEPEST, shortened, shown

QUESTION_COLUMNS = ("prompt", "messages", "question", "problem")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "target")
ID_COLUMNS = ("prompt_id", "id")

EXTRACTION_SECONDS = 1.0
"""How long the search for an answer in one row may take; a bad pattern can take for ever."""
LONGEST_PROMPT = 4_000_000
"""Characters of a prompt: four for each token of the longest contexts."""
MOST_BITS = 4_096
"""Bits of an integer; Python refuses to print much longer ones."""

Cells = dict[str, Any]
"""A row: JSON values by column name, empty cells left out."""


def to_prompt(row: Mapping[str, Any], source: PromptSource, where: str, fallback: str) -> Prompt:
    """Turn one row into a prompt.

    `where` names file and row in errors; `fallback` is the `source` of a row that names none.
    Raises InputError if the row has no question, no answer, or one of the wrong type.
    """
    cells = _cells(row, where)
    question_column, question = _question(cells, source, where)
    answer = _answer(cells, source, where)
    text, messages = _shape(question, source, f"{where}, column {shown(question_column, 60)}")
    name = _source_name(cells, source, fallback)
    extra = _extra(cells, question_column, answer, name)
    prompt_id = _given_id(cells, where)
    prompt = Prompt(prompt_id or "", answer, name, text, messages, extra)
    if len(prompt.content) + len(answer) > LONGEST_PROMPT:
        raise InputError(
            f"{where} holds {len(prompt.content) + len(answer):,} characters of question and "
            f"answer; a prompt has at most {LONGEST_PROMPT:,}: shorten or remove it"
        )
    if prompt_id is not None:
        return prompt
    return replace(prompt, prompt_id=content_id(prompt.content, answer, name))


def _cells(row: Mapping[str, Any], where: str) -> Cells:
    """Return the row's cells that are not empty, as JSON values."""
    cells: Cells = {}
    for column, value in row.items():
        try:
            cell = json_value(value)
            require_writable_text(str(column))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{where}: column {shown(column, 60)} holds {error}, which JSON cannot hold; "
                "remove it"
            ) from None
        if cell is not None:
            cells[str(column)] = cell
    return cells


def _column_names(cells: Cells) -> str:
    return shortened(", ".join(sorted(cells)), 300) or "none"


def _question(cells: Cells, source: PromptSource, where: str) -> tuple[str, Any]:
    """Return the question's column and its value."""
    columns = (source.prompt,) if source.prompt else QUESTION_COLUMNS
    column = next((c for c in columns if c in cells), None)
    if column is None:
        raise InputError(
            f"{where} has no question in column {' or '.join(columns)} (it has the columns "
            f"{_column_names(cells)}); fill it, or name the right column with `prompt:` in the "
            "config"
        )
    return column, cells[column]


def _answer(cells: Cells, source: PromptSource, where: str) -> str:
    """Return the answer's text, extracted by `answer_regex` if there is one."""
    column, value = _raw_answer(cells, source)
    text = as_text(value).strip() if value is not None else ""
    if not text:
        columns = source.answer or " or ".join((*ANSWER_COLUMNS, "reward_model.ground_truth"))
        raise InputError(
            f"{where} has no answer in column {columns} (it has the columns "
            f"{_column_names(cells)}); fill it, or name the right column with `answer:` in the "
            "config"
        )
    if source.answer_regex is None:
        return text
    return _extract(source.answer_regex, text, where, column)


def _raw_answer(cells: Cells, source: PromptSource) -> tuple[str, Any]:
    if source.answer:
        return source.answer, cells.get(source.answer)
    judged = cells.get("reward_model")
    if isinstance(judged, dict) and judged.get("ground_truth") is not None:
        return "reward_model", judged["ground_truth"]
    column = next((c for c in ANSWER_COLUMNS if c in cells), ANSWER_COLUMNS[0])
    # A reasoning-gym task with many right answers gives none: the verifier scores by its entry.
    return column, cells.get(column, "any" if _has_task_entry(cells) else None)


def _has_task_entry(cells: Cells) -> bool:
    extra = cells.get("extra")
    return isinstance(extra, dict) and "reasoning_gym" in extra


def _extract(pattern: str, text: str, where: str, column: str) -> str:
    """Return the first group of the pattern's first match."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise InputError(
            f"answer_regex {pattern!r} is not a regular expression ({error}); fix it"
        ) from None
    if compiled.groups < 1:
        raise InputError(
            f"answer_regex {pattern!r} has no group; put the answer's part in parentheses"
        )
    try:
        match = compiled.search(text, timeout=EXTRACTION_SECONDS)
    except TimeoutError:
        raise InputError(
            f"{where}: answer_regex {pattern!r} takes longer than {EXTRACTION_SECONDS:g} s in "
            f"column {shown(column, 60)} (value {shown(text, 80)}); write it without nested repeats"
        ) from None
    answer = (match.group(1) or "").strip() if match else ""
    if not answer:
        raise InputError(
            f"{where}: answer_regex {pattern!r} matches nothing in column {shown(column, 60)} "
            f"(value {shown(text, 80)}); fix the regex or the row"
        )
    return answer


def _shape(
    question: Any, source: PromptSource, where: str
) -> tuple[str | None, tuple[Message, ...] | None]:
    """Return (text, None) or (None, messages), with template, system and chat applied."""
    if isinstance(question, str):
        text = _templated(_nonempty(question, where), source)
        if source.system is None and not source.chat:
            return text, None
        if source.chat is False:
            raise InputError(
                f"{where}: `system: {shown(source.system, 80)}` makes the prompt a chat, but "
                "`chat: false` forbids one; remove one of them"
            )
        return None, (*_system(source), {"role": "user", "content": text})
    if source.chat is False:
        raise InputError(f"{where} holds messages, but `chat: false` asks for text; remove `chat`")
    return None, _chat(_messages(question, where), source)


def _templated(text: str, source: PromptSource) -> str:
    return source.template.replace("{prompt}", text) if source.template else text


def _system(source: PromptSource) -> tuple[Message, ...]:
    return ({"role": "system", "content": source.system},) if source.system is not None else ()


def _chat(messages: list[Message], source: PromptSource) -> tuple[Message, ...]:
    """Apply the template to the last message; the config's system message replaces the row's."""
    if source.system is not None:
        messages = [m for m in messages if m["role"] != "system"]
    *earlier, last = messages
    templated = {"role": last["role"], "content": _templated(last["content"], source)}
    return (*_system(source), *earlier, templated)


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{where} holds {shown(value, 80)}; give text or a list of {{role, content}} messages"
        )
    messages = [_message(m, where) for m in value]
    if messages[-1]["role"] == "assistant":
        raise InputError(
            f"{where}: the last message is the assistant's; end the prompt with a user message"
        )
    _nonempty(messages[-1]["content"], where)
    return messages


def _message(value: Any, where: str) -> Message:
    cells = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if set(cells) != {"role", "content"} or not all(isinstance(v, str) for v in cells.values()):
        raise InputError(
            f"{where} holds the message {shown(value, 80)}; give each one text `role` and one text "
            "`content`, and nothing else"
        )
    return {"role": cells["role"], "content": cells["content"]}


def _nonempty(text: str, where: str) -> str:
    if not text.strip():
        raise InputError(f"{where} holds an empty prompt; fill it or remove the row")
    return text


def _source_name(cells: Cells, source: PromptSource, fallback: str) -> str:
    """Return the verifier's key; a name in the config takes precedence."""
    if source.source is not None:
        return source.source
    named = cells.get("data_source", cells.get("source"))
    return named if isinstance(named, str) and named else fallback


def _given_id(cells: Cells, where: str) -> str | None:
    column = next((c for c in ID_COLUMNS if c in cells), None)
    if column is None:
        return None
    value = cells[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(
            f"{where}: column {shown(column, 60)} holds {shown(value, 80)}; give a text or a whole "
            "number"
        )
    return str(value)


def _extra(cells: Cells, question_column: str, answer: str, source: str) -> Cells:
    """Return every cell whose original value the prompt's own fields do not hold.

    `reward_model` stays: besides the answer it holds the style and the answer's type.
    """
    fields = {"answer": answer, "source": source, "data_source": source}
    id_column = next((c for c in ID_COLUMNS if c in cells), None)
    consumed = {question_column, id_column, "extra"}
    others = {c: v for c, v in cells.items() if c not in consumed and fields.get(c) != v}
    return {**_given_extra(cells.get("extra")), **others}


def _given_extra(value: Any) -> Cells:
    """Return the contents of an `extra` column: an object, or its JSON text as cropi stores it."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return {"extra": value}
    if value is None or isinstance(value, dict):
        return value or {}
    return {"extra": value}


def json_value(value: Any, depth: int = 0) -> Any:
    """Return `value` with numpy, Arrow and date types replaced by what JSON can hold.

    NaN becomes None, because dataframes write a missing cell as NaN. Raises TypeError on a value
    that JSON cannot hold, such as bytes or an image, and ValueError on text with half a character,
    huge integers, and values nested too deep.
    """
    if isinstance(value, str):
        return require_writable_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ValueError(shown(value))
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if depth > DEEPEST:
        raise ValueError(f"values nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {require_writable_text(str(k)): json_value(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(v, depth + 1) for v in value]
    return _convert(value, depth)


def require_writable_text(text: str) -> str:
    """Return the text. Raises ValueError if it has half a character, which UTF-8 cannot write."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text with half a character (a lone surrogate)")
    return text


def _convert(value: Any, depth: int) -> Any:
    if isinstance(value, np.ndarray):
        return json_value(value.tolist(), depth + 1)
    if isinstance(value, np.generic):
        return json_value(value.item(), depth + 1)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def as_text(value: Any) -> str:
    """Return a JSON value as the text of an answer; lists and objects become JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
