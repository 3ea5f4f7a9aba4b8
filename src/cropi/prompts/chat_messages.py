"""Chats as people write them: content parts, tool calls and their results, tools, a begun answer.

What is not text is refused, and so is a chat whose last message gives the answer away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cropi.errors import InputError
from cropi.schema import MESSAGE_KEYS, Message
from cropi.text import shown

TEXT_PARTS = ("text", "input_text")
"""Types of content parts that are text, in the formats of Hugging Face and OpenAI."""
_MEDIA_COLUMN = re.compile(
    r"(?:decoded_)?(?:image|picture|photo|audio|sound|video)s?(?:_?(?:url|path|file|bytes|\d+)s?)?"
)
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)(?:_\d+)?>|<\|(?:image|vision|audio)\w*\|>")
_WRITTEN_CHAT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")
_ONLY_TEXT = "the models here read text only: leave such rows out"


def chat_messages(value: Any, where: str) -> list[Message]:
    """Return the messages of a chat.

    Raises InputError for a value that is none, is empty, or holds something else than text.
    """
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{where} holds {shown(value, 80)}; give text or a list of {{role, content}} messages"
        )
    messages = [_message(message, where) for message in value]
    last = messages[-1]
    if last["role"] == "system" or not (str(last["content"]).strip() or "tool_calls" in last):
        raise InputError(f"{where} holds an empty prompt; fill it or remove the row")
    if "tool_calls" in last:
        raise InputError(
            f"{where}: the last message calls tools, and their results are missing; end the prompt "
            "with them, or before the call"
        )
    return messages


def written_chat(value: Any, where: str) -> Any:
    """The messages in a text that is a chat written as JSON; anything else as it is.

    Raises InputError for a chat that is written as Python shows it, as tables often do.
    """
    if not isinstance(value, str) or not _WRITTEN_CHAT.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InputError(
            f"{where} holds a chat as text that is not JSON ({shown(value, 80)}); write its "
            "messages as JSON"
        ) from None


def _message(value: Any, where: str) -> Message:
    cells = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    role, content = cells.pop("role", None), cells.pop("content", None)
    calls = _tool_calls(cells.pop("tool_calls", None), where)
    texts = {key: cells.pop(key) for key in MESSAGE_KEYS if isinstance(cells.get(key), str)}
    if isinstance(content, list):
        content = "".join(_part_text(part, where) for part in content)
    elif content is None and calls:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str) or cells:
        raise InputError(
            f"{where} holds the message {shown(value, 80)}; give each one text `role` and one text "
            f"`content`, and besides them nothing but {', '.join(MESSAGE_KEYS)}"
        )
    return {"role": role, "content": content, **texts, **({"tool_calls": calls} if calls else {})}


def _part_text(part: Any, where: str) -> str:
    """The text of one content part. Raises InputError for an image, a sound, and the like."""
    if isinstance(part, str):
        return part
    cells = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
    kind, text = cells.get("type", "text"), cells.get("text")
    if kind in TEXT_PARTS and isinstance(text, str):
        return text
    raise InputError(
        f"{where} holds a content part of type {shown(kind, 40)} ({shown(part, 80)}), which is not "
        f"text; {_ONLY_TEXT}"
    )


def _tool_calls(value: Any, where: str) -> list[Mapping[str, Any]]:
    """An assistant's calls, with arguments as the objects that chat templates expect."""
    calls = _objects(value, f"{where}: tool_calls", "calls")
    return [_with_arguments(call) for call in calls]


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(inner := call.get("function"), dict):
        return {**call, "function": _with_arguments(inner)}
    arguments = call.get("arguments")
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": parsed} if isinstance(parsed, dict) else call


def chat_tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the JSON schemas in a `tools` column: objects, or the JSON text of a list of them."""
    return tuple(_objects(value, f"{where}, column 'tools',", "JSON schemas of functions"))


def _objects(value: Any, where: str, what: str) -> list[Mapping[str, Any]]:
    """A list of objects without empty cells, which Arrow adds where another row has a key."""
    try:
        listed = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InputError(f"{where} holds {shown(value, 80)}; give a list of {what}")
    return [_without_empty(each) for each in listed]


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(each) for key, each in value.items() if each is not None}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value


def require_open_end(begun: str, answer: str, where: str) -> None:
    """Raise InputError if an answer that the response is to continue already gives the answer."""
    ends = re.sub(r"[\s.!$*)}\]]+$", "", begun)
    marked = re.search(rf"(?:\\boxed\{{|####\s*|<answer>\s*){re.escape(answer)}(?!\w)", begun)
    if marked or re.search(rf"(?<!\w){re.escape(answer)}$", ends):
        raise InputError(
            f"{where}: the last message is the assistant's and gives the answer "
            f"{shown(answer, 60)}; end the prompt before it (text that the response is to continue "
            "may stay)"
        )


def require_text_only(row: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a row whose question comes with an image, a sound or a film."""
    for column, value in row.items():
        if _MEDIA_COLUMN.fullmatch(str(column).casefold()) and not _is_empty(value):
            raise InputError(
                f"{where}: column {shown(column, 60)} holds {shown(value, 60)}, an image or a "
                f"sound; {_ONLY_TEXT}, or remove the column if the question stands without it"
            )


def placeholder_in(text: str) -> str | None:
    """What stands in a text where an image or a sound was."""
    place = _PLACEHOLDER.search(text)
    return place[0] if place else None


def _is_empty(value: Any) -> bool:
    sized = hasattr(value, "__len__") and len(value) == 0
    return value is None or sized or (isinstance(value, float) and value != value)
