"""Results of OpenAI's batches, which vLLM's `run-batch` and other servers write in the same way.

A line has custom_id and response (status_code, body: of chat completions, completions or the
Responses API), or an error. What was asked is in the file of the requests (custom_id, method, url,
body), which is read from the folder of the results, before or after them. Without it the custom_id
is taken for the id of a row. vLLM adds token_ids and prompt_token_ids where `return_token_ids` asks
for them. Log-probs are not used: servers return those of the model itself, whatever they sampled
with. There are no rewards, unless somebody has added them to the lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    Tokens,
    finish_reason_of,
    is_rendered,
    other_columns,
    read_completion,
    read_prompt,
    reward_status,
    temperature_of,
    token_array,
)
from cropi.exchange.imports.responses_api import last_message, output_items, request_prompt
from cropi.plugins import plugin
from cropi.prompts.json_values import parsed_json
from cropi.prompts.row_files import NumberedRow
from cropi.text import shown

FORMAT_COLUMNS = ("id", "custom_id", "response", "error")
Name = tuple[Path, str]
"""A folder and a custom_id: the next batch may begin to count again."""


@plugin("rollout_format", "openai-batch")
class OpenAIBatch:
    """Lines of results, and of the requests that they answer."""

    def __init__(self) -> None:
        self._requests: dict[Name, Row] = {}
        self._unasked: dict[Name, list[LoggedResponse]] = {}

    def recognises(self, row: Row) -> bool:
        """Whether a row is a result, or a request."""
        result = parsed_json(row.get("response"))
        failed = result is None and {"response", "error"} <= row.keys()
        answered = isinstance(result, Mapping) and "body" in result
        return "custom_id" in row and (failed or answered or _request(row) is not None)

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per choice of a result; requests say what was asked."""
        for number, row in rows:
            where, name = file.where(number), (file.path.parent, str(row["custom_id"]))
            if (request := _request(row)) is not None:
                self._ask(name, request, where)
                continue
            for response in _answers(row, file, where):
                if name in self._requests:
                    _name_prompt(response, self._requests[name], where)
                else:
                    self._unasked.setdefault(name, []).append(response)
                yield response

    def _ask(self, name: Name, request: Row, where: str) -> None:
        earlier = self._requests.setdefault(name, request)
        if _asked_in(request, where) != _asked_in(earlier, where):
            raise InputError(
                f"{where} has the custom_id {shown(name[1], 40)} of an earlier request that asks "
                "for something else; give each batch, requests and results, a folder of its own"
            )
        for response in self._unasked.pop(name, []):
            _name_prompt(response, request, where)


def _request(row: Row) -> Row | None:
    """The body of a request; None for a result."""
    body = parsed_json(row.get("body"))
    return body if isinstance(body, Mapping) else None


def _asked_in(request: Row, where: str) -> Any:
    given = request.get("messages", request.get("prompt"))
    return request_prompt(request) if given is None else read_prompt(given, where)


def _name_prompt(response: LoggedResponse, request: Row, where: str) -> None:
    """Say what was asked; it names the prompt, as each sample may have a custom_id of its own."""
    response.prompt, response.prompt_id = _asked_in(request, where), ""
    response.rendered = is_rendered(response.prompt)
    response.temperature = temperature_of(request.get("temperature"))


def _answers(row: Row, file: LogFile, where: str) -> Iterator[LoggedResponse]:
    """The responses in a result, without what its request says."""
    result = parsed_json(row.get("response"))
    if not isinstance(result, Mapping) or result.get("status_code", 200) != 200:
        file.notes.add("a request that failed, left out", where)
        return
    reward = file.reward(row, None, where)
    body = parsed_json(result["body"])
    for place, response in enumerate(_of_body(body, file.tokens, where)):
        response.reward, response.status = reward, reward_status(reward)
        response.prompt_id, response.step = str(row["custom_id"]), file.step
        response.record_id = f"{body['id']}:{place}" if body.get("id") else ""
        response.about = other_columns(row, *FORMAT_COLUMNS)
        yield response


def _of_body(body: Row, tokens: bool, where: str) -> Iterator[LoggedResponse]:
    """What a body says: one response, or one for each of its choices."""
    if "choices" not in body:
        items = output_items(body)
        message = last_message(body, items)
        yield LoggedResponse(
            "", message.text, float("nan"), finish=message.finish, whole_text=message.whole_text
        )
        return
    for choice in body["choices"]:
        message = choice.get("message")
        text, whole_text = read_completion(choice.get("text") if message is None else [message])
        yield LoggedResponse(
            "",
            text,
            float("nan"),
            finish=finish_reason_of(choice.get("finish_reason")),
            whole_text=whole_text,
            tokens=_tokens(body, choice, where) if tokens else None,
        )


def _tokens(body: Row, choice: Row, where: str) -> Tokens | None:
    prompt_ids = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
    if not prompt_ids or not choice.get("token_ids"):
        return None
    prompt = token_array(prompt_ids, where, "prompt_token_ids")
    return Tokens(prompt, token_array(choice["token_ids"], where, "token_ids"))
