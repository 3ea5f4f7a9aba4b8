"""From a row of some dataset to a `Prompt`: cropi's own rows, TRL's, verl's, or columns by name.

A format is recognised by its columns alone, in this order: the names given in the config, verl's
`reward_model`, then the usual names of questions and answers. Every cell that the prompt's own
fields do not hold stays in `extra`, so that a reward function finds every column it had before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import regex

from cropi.errors import InputError
from cropi.prompts.chat_messages import (
    chat_messages,
    chat_tools,
    placeholder_in,
    require_open_end,
    require_text_only,
    written_chat,
)
from cropi.prompts.json_values import (
    NESTED_COLUMNS,
    as_text,
    json_value,
    parsed_json,
    require_writable_text,
)
from cropi.prompts.row_columns import (
    ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    Cells,
    RowNotes,
    cell_of,
    note_other_columns,
    note_unseen_choices,
    note_worked_solution,
    recognised,
)
from cropi.prompts.settings import PromptSource
from cropi.schema import Message, Prompt, content_id
from cropi.text import shortened, shown

ID_COLUMNS = ("prompt_id", "id")

EXTRACTION_SECONDS = 1.0
"""How long the search for an answer in one row may take; a bad pattern can take for ever."""
LONGEST_PROMPT = 4_000_000
"""Characters of a prompt: four for each token of the longest contexts."""


TEMPLATE_MARKS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|(?:user|assistant|system|start|turn)\|>|<start_of_turn>"
    r"|\[INST\]|<\uff5c(?:User|Assistant)\uff5c>|(?:Assistant|### Response):?\s*(?:<think>\s*)?$"
)
"""Marks of a chat template, or of a dialogue that the response continues."""
_STORED = frozenset({"prompt_id", "prompt", "messages", "answer", "source", "extra"})
"""Columns of a file that cropi wrote."""


def to_prompt(
    row: Mapping[str, Any],
    source: PromptSource,
    where: str,
    fallback: str,
    *,
    templated: bool = False,
    notes: RowNotes | None = None,
) -> Prompt:
    """Turn one row into a prompt.

    `where` names file and row in errors; `fallback` is the `source` of a row that names none. With
    `templated`, for a model with a chat template, text becomes a user message unless the source
    says `chat: false`, or the text has a template's marks in it; its id stays that of the text.
    `notes` collects what a reader should know.

    Raises InputError if the row has no question, no answer, or one of the wrong type.
    """
    notes = notes or RowNotes("")
    require_text_only(row, where)
    cells = _cells(row, where)
    column, question = _question(cells, source, where, notes)
    answer = _answer(cells, source, where, notes)
    tools = chat_tools(cells.get("tools"), where)
    text, messages = _shape(question, source, f"{where}, column {shown(column, 60)}", bool(tools))
    name = _source_name(cells, source, fallback)
    extra = _extra(cells, column, answer, name)
    prompt = Prompt("", answer, name, text, messages, extra, tools)
    _require_usable(prompt, where, notes)
    note_unseen_choices(cells, prompt.content, notes, where)
    prompt_id = _given_id(cells, where) or content_id(prompt.content, answer, name)
    prompt = replace(prompt, prompt_id=prompt_id)
    decided = not templated or source.chat is not None or row.keys() >= _STORED
    return prompt if decided else _by_default(prompt, where, notes)


def _require_usable(prompt: Prompt, where: str, notes: RowNotes) -> None:
    """Raise InputError for a prompt that is too long, or gives its answer away."""
    length = len(prompt.content) + len(prompt.answer)
    if length > LONGEST_PROMPT:
        raise InputError(
            f"{where} holds {length:,} characters of question and answer; a prompt has at most "
            f"{LONGEST_PROMPT:,}: shorten or remove it"
        )
    if prompt.continued is not None:
        require_open_end(prompt.continued, prompt.answer, where)
        notes.add(
            "the last message is the assistant's, and responses continue it",
            where,
            f": {shown(prompt.continued, 60)}",
        )
    if place := placeholder_in(prompt.content):
        notes.add(
            f"the question has {place} where an image or a sound was, which is not there",
            where,
        )


def _by_default(prompt: Prompt, where: str, notes: RowNotes) -> Prompt:
    """Make text a user message, as somebody who asks a model with a chat template expects."""
    if prompt.prompt is None:
        return prompt
    if TEMPLATE_MARKS.search(prompt.prompt):
        notes.add(
            "text with a chat template's marks in it stays as it is; `chat: true` makes it a user "
            "message",
            where,
            f": {shown(prompt.prompt, 60)}",
        )
        return prompt
    notes.add(
        "text becomes a user message of the model's chat template; `chat: false` leaves it as text",
        where,
    )
    return replace(prompt, prompt=None, messages=({"role": "user", "content": prompt.prompt},))


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
            cells[str(column)] = parsed_json(cell) if column in NESTED_COLUMNS else cell
    return cells


def _column_names(cells: Cells) -> str:
    return shortened(", ".join(sorted(cells)), 300) or "none"


def _question(cells: Cells, source: PromptSource, where: str, notes: RowNotes) -> tuple[str, Any]:
    """Return the question's column and its value."""
    columns = [source.prompt] if source.prompt else recognised(cells, QUESTION_COLUMNS)
    column = columns[0] if columns else ""
    question = cell_of(cells, column) if columns else None
    if question is None:
        names = source.prompt or " or ".join(QUESTION_COLUMNS)
        raise InputError(
            f"{where} has no question in column {names} (it has the columns "
            f"{_column_names(cells)}); fill it, or name the right column with `prompt:` in the "
            "config, or --prompt-column"
        )
    if not source.prompt:
        note_other_columns(cells, column, question, QUESTION_COLUMNS, notes, where)
    return column, written_chat(question, f"{where}, column {shown(column, 60)}")


def _answer(cells: Cells, source: PromptSource, where: str, notes: RowNotes) -> str:
    """Return the answer's text, extracted by `answer_regex` if there is one."""
    column, value = _raw_answer(cells, source)
    if isinstance(value, float) and math.isinf(value):
        raise InputError(
            f"{where}, column {shown(column, 60)} holds a number that is too large ({value}); "
            "write the answer as text"
        )
    text = as_text(value).strip() if value is not None else ""
    if not text:
        columns = source.answer or " or ".join((*ANSWER_COLUMNS, "reward_model.ground_truth"))
        raise InputError(
            f"{where} has no answer in column {columns} (it has the columns "
            f"{_column_names(cells)}); fill it, or name the right column with `answer:` in the "
            "config, or --answer-column"
        )
    if not source.answer:
        notes.answer_columns[column] += 1
        note_other_columns(cells, column, value, ANSWER_COLUMNS, notes, where)
    if source.answer_regex is not None:
        return _extract(source.answer_regex, text, where, column)
    note_worked_solution(column, text, notes, where)
    return text


def _raw_answer(cells: Cells, source: PromptSource) -> tuple[str, Any]:
    """The answer's column and value; in verl's rows it is a part of `reward_model`."""
    if source.answer:
        return source.answer, cell_of(cells, source.answer)
    judged = cell_of(cells, "reward_model.ground_truth")
    if judged is not None:
        return "reward_model", judged
    if columns := recognised(cells, ANSWER_COLUMNS):
        return columns[0], cells[columns[0]]
    # A reasoning-gym task with many right answers gives none: the verifier scores by its entry.
    return "answer", "any" if _has_task_entry(cells) else None


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
    question: Any, source: PromptSource, where: str, with_tools: bool
) -> tuple[str | None, tuple[Message, ...] | None]:
    """Return (text, None) or (None, messages), with template, system and chat applied."""
    if source.chat is False and (source.system is not None or with_tools):
        cause = f"`system: {shown(source.system, 80)}`" if source.system is not None else "`tools`"
        raise InputError(
            f"{where}: {cause} makes the prompt a chat, but `chat: false` forbids one; remove one "
            "of them"
        )
    if isinstance(question, str):
        text = _templated(_nonempty(question, where), source)
        if source.system is None and not source.chat and not with_tools:
            return text, None
        return None, (*_system(source), {"role": "user", "content": text})
    if source.chat is False:
        raise InputError(f"{where} holds messages, but `chat: false` asks for text; remove `chat`")
    return None, _chat(chat_messages(question, where), source)


def _templated(text: str, source: PromptSource) -> str:
    return source.template.replace("{prompt}", text) if source.template else text


def _system(source: PromptSource) -> tuple[Message, ...]:
    return ({"role": "system", "content": source.system},) if source.system is not None else ()


def _chat(messages: list[Message], source: PromptSource) -> tuple[Message, ...]:
    """Apply the template to the user's last message, and the config's system message first."""
    if source.system is not None:
        messages = [m for m in messages if m["role"] != "system"]
    asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
    if asked is not None:
        content = _templated(messages[asked]["content"], source)
        messages[asked] = {**messages[asked], "content": content}
    return (*_system(source), *messages)


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
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(
            f"{where}: column {shown(column, 60)} holds {shown(value, 80)}; give text or a whole "
            "number"
        )
    return str(value)


def _extra(cells: Cells, question_column: str, answer: str, source: str) -> Cells:
    """Return every cell whose original value the prompt's own fields do not hold.

    `reward_model` stays: besides the answer it holds the style and the answer's type.
    """
    fields = {"answer": answer, "source": source, "data_source": source}
    id_column = next((c for c in ID_COLUMNS if c in cells), None)
    consumed = {question_column, id_column, "extra", "tools"}
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
