"""Requests and responses of OpenAI's Responses API, as logs of several tools hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cropi.exchange.imports.logged import Row, plain_messages, plain_text
from cropi.schema import Message


def request_prompt(request: Row) -> str | tuple[Message, ...]:
    """The input of a request: text, or messages; instructions come first."""
    given, instructions = request.get("input"), request.get("instructions")
    messages = given if isinstance(given, list) else [{"role": "user", "content": given or ""}]
    before = [{"role": "system", "content": instructions}] if instructions else []
    return plain_messages([*before, *messages])


def output_items(response: Any) -> list[Row]:
    """The items of a response's output: messages, thoughts, calls of tools."""
    output = response.get("output") if isinstance(response, Mapping) else None
    return [item for item in output or [] if isinstance(item, Mapping)]


@dataclass(frozen=True)
class LastMessage:
    """What a response says: its last message, whether that is all of it, and how it ended."""

    text: str
    whole_text: bool
    finish: Literal["", "stop", "length"]


def last_message(response: Any, items: Sequence[Row]) -> LastMessage:
    """What a response with these items says."""
    turns = [item for item in items if item.get("type", "message") == "message"]
    cut = response.get("incomplete_details") if isinstance(response, Mapping) else None
    return LastMessage(
        plain_text(turns[-1].get("content")) if turns else "",
        len(items) == 1 and len(turns) == 1,
        "length" if isinstance(cut, Mapping) else ("stop" if turns else ""),
    )
