"""Rows of your own: a question, one response or several, and their rewards, by usual names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cropi.errors import InputError
from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    finish_reason_of,
    is_rendered,
    other_columns,
    read_completion,
    read_prompt,
    reward_number,
    reward_status,
    summed_reward,
)
from cropi.plugins import plugin
from cropi.prompts.formats import ID_COLUMNS
from cropi.prompts.json_values import as_text
from cropi.prompts.row_columns import ANSWER_COLUMNS, QUESTION_COLUMNS, recognised
from cropi.prompts.row_files import NumberedRow
from cropi.text import plural

RESPONSES = ("responses", "completions", "outputs", "generations", "samples", "rollouts")
RESPONSE = ("response", "completion", "output", "generation", "generated_text", "prediction")
OF_ONE = (*RESPONSE, "text", "content", "message", "messages")
"""What a response is called in an object of its own."""
REWARDS = ("rewards", "scores", "correct", "is_correct", "passed", "verdicts", "labels")
REWARD = ("reward", "score", "correct", "is_correct", "passed", "accuracy", "acc")
STEP = ("step", "global_step", "training_step", "policy_step", "iteration")
FINISH = ("finish_reason", "stop_reason", "finish_reasons")
SOURCE = ("data_source", "source", "dataset")


@plugin("rollout_format", "plain")
class PlainRows:
    """JSON lines, Parquet or CSV with prompts, responses and rewards."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has a question (or an id), a response and a reward."""
        cells = next(iter(_rows(row)), {})
        asks = recognised(cells, QUESTION_COLUMNS) or recognised(cells, ID_COLUMNS)
        answers = recognised(cells, (*RESPONSES, *RESPONSE))
        return bool(asks and answers and recognised(cells, (*REWARDS, *REWARD)))

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response for each text of a row."""
        for number, row in rows:
            where = file.where(number)
            for each in _rows(row):
                yield from _responses(each, file, where)


def _rows(row: Row) -> list[dict[str, Any]]:
    """The row; one for each of its responses where these are objects with cells of their own."""
    columns = recognised(dict(row), (*RESPONSES, *RESPONSE))
    several = row[columns[0]] if columns else None
    if not isinstance(several, list) or not several or _is_chat(several):
        return [_with_response(dict(row))]
    if not all(isinstance(each, dict) and recognised(each, OF_ONE) for each in several):
        return [_with_response(dict(row))]
    shared = other_columns(row, columns[0])
    return [_with_response({**shared, **_named(each)}) for each in several]


def _named(response: Row) -> dict[str, Any]:
    """The cells of a response that is an object, its text under a name of a response."""
    column = recognised(dict(response), OF_ONE)[0]
    content = response[column]
    text = [content] if isinstance(content, dict) else content
    return {**other_columns(response, column), RESPONSE[0]: text}


def _with_response(row: dict[str, Any]) -> dict[str, Any]:
    """The row; of a whole conversation, what follows the last question is the response."""
    chat = _first(row, ("messages", "conversation", "prompt"))
    if not isinstance(chat, list) or recognised(row, (*RESPONSES, *RESPONSE)):
        return row
    roles = [m.get("role") if isinstance(m, dict) else None for m in chat]
    if "user" not in roles or roles[-1] != "assistant":
        return row
    asked_until = len(roles) - roles[::-1].index("user")
    others = other_columns(row, "messages", "conversation", "prompt")
    return {**others, "messages": chat[:asked_until], "completion": chat[asked_until:]}


def _responses(row: dict[str, Any], file: LogFile, where: str) -> Iterator[LoggedResponse]:
    question = _first(row, QUESTION_COLUMNS)
    texts, rewards = _texts_and_rewards(row, file, where)
    answer, step = _first(row, ANSWER_COLUMNS), _first(row, STEP)
    finish = _first(row, FINISH)
    prompt = read_prompt(question, where)
    consumed = recognised(row, (*RESPONSES, *RESPONSE, *REWARDS, *REWARD, *STEP, *FINISH))
    asking = recognised(row, (*QUESTION_COLUMNS, *ID_COLUMNS))
    identifier = _first(row, ID_COLUMNS)
    for place, (given, reward) in enumerate(zip(texts, rewards, strict=True)):
        text, whole_text = read_completion(given)
        reason = finish[place] if isinstance(finish, list) and place < len(finish) else finish
        yield LoggedResponse(
            prompt=prompt,
            text=text,
            reward=reward,
            status=reward_status(reward),
            prompt_id="" if identifier is None else str(identifier),
            answer="" if answer is None else as_text(answer).strip(),
            source=str(_first(row, SOURCE) or ""),
            step=file.step_of(step, where),
            finish=finish_reason_of(reason),
            rendered=is_rendered(prompt),
            whole_text=whole_text,
            about=other_columns(row, *consumed, *asking),
        )


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first column that has one of these names and is not empty."""
    columns = (column for column in recognised(row, names) if row[column] is not None)
    column = next(columns, None)
    return None if column is None else row[column]


def _texts_and_rewards(
    row: dict[str, Any], file: LogFile, where: str
) -> tuple[list[Any], list[float]]:
    """The responses of a row and as many rewards: one of each, or a list of each."""
    several = _first(row, RESPONSES)
    if not isinstance(several, list) or _is_chat(several):
        text = several if several is not None else _first(row, RESPONSE)
        return [text], [file.reward(row, _first(row, (*REWARD, *REWARDS)), where)]
    columns = file.cells(row, where) or [_first(row, (*REWARDS, *REWARD))]
    columns = [[None] * len(several) if rewards is None else rewards for rewards in columns]
    for rewards in columns:
        if not isinstance(rewards, list) or len(rewards) != len(several):
            count = plural(len(rewards), "reward") if isinstance(rewards, list) else "one reward"
            raise InputError(
                f"{where} has {plural(len(several), 'response')} and {count}; give a list with "
                "one reward for each response"
            )
    numbers = [[reward_number(value, where) for value in rewards] for rewards in columns]
    return several, [summed_reward(each) for each in zip(*numbers, strict=True)]


def _is_chat(values: list[Any]) -> bool:
    """Whether a list is the messages of one response, not several responses."""
    return bool(values) and all(isinstance(v, dict) and "role" in v for v in values)
