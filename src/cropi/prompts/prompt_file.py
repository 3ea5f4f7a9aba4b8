"""Prompts as a Parquet file: the columns of the data contract.

`extra`, and where there are any `tools` and the tool calls of messages, are JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.prompts.row_files import rows_of
from cropi.schema import MESSAGE_KEYS, Message, Prompt
from cropi.store import files
from cropi.text import shown

COLUMNS = ("prompt_id", "prompt", "messages", "answer", "source", "extra")


def write_prompts(
    path: Path, prompts: Sequence[Prompt], metadata: Mapping[str, str] | None = None
) -> None:
    """Write prompts atomically, in order.

    Raises InputError if `path` cannot be written.
    """
    import pyarrow as pa

    keys = [k for k in MESSAGE_KEYS if any(k in m for p in prompts for m in p.messages or ())]
    message = pa.struct([(key, pa.string()) for key in ("role", "content", *keys)])
    columns = [*COLUMNS, *(["tools"] if any(p.tools for p in prompts) else [])]
    types = dict.fromkeys(columns, pa.string()) | {"messages": pa.list_(message)}
    schema = pa.schema([(name, types[name]) for name in columns])
    table = pa.Table.from_pylist([_as_row(p) for p in prompts], schema=schema)
    files.write_table(path, table, metadata)


def _as_row(prompt: Prompt) -> dict[str, Any]:
    messages = None if prompt.messages is None else [_stored(m) for m in prompt.messages]
    return {
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.prompt,
        "messages": messages,
        "answer": prompt.answer,
        "source": prompt.source,
        "extra": json.dumps(dict(prompt.extra), ensure_ascii=False),
        "tools": json.dumps(prompt.tools, ensure_ascii=False) if prompt.tools else None,
    }


def _stored(message: Message) -> dict[str, str]:
    """A message with its tool calls as JSON text."""
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in message.items()}
    return {key: str(value) for key, value in values.items()}


def _restored(message: Any) -> Message:
    """A message as it was; TypeError for what is none."""
    texts = isinstance(message, dict) and [message.get(key) for key in ("role", "content")]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("a message has to have a role and a content, both text")
    values = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in values:
        values["tool_calls"] = json.loads(values["tool_calls"])
    return values


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts that `write_prompts` wrote, in order.

    Raises InputError if the file is missing, damaged, lacks a column, or has an id twice.
    """
    table = files.read_table(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)} (it has "
            f"{', '.join(table.column_names)}); give a file that cropi wrote"
        )
    prompts, ids = [], set[str]()
    columns = [name for name in (*COLUMNS, "tools") if name in table.column_names]
    for number, row in rows_of(table.select(columns).to_batches(), path):
        try:
            prompts.append(_as_prompt(row))
        except (TypeError, ValueError, KeyError, AssertionError, RecursionError) as error:
            raise InputError(
                f"{path} row {number} is not a prompt that cropi wrote ({shown(str(error), 120)}); "
                "make the file again"
            ) from None
        ids.add(prompts[-1].prompt_id)
        if len(ids) < len(prompts):
            raise InputError(
                f"{path} row {number} has the prompt_id {shown(prompts[-1].prompt_id, 60)} of an "
                "earlier row; make the file again"
            )
    return prompts


def _as_prompt(row: Mapping[str, Any]) -> Prompt:
    messages = row["messages"]
    if not all(isinstance(row[name], str) for name in ("prompt_id", "answer", "source", "extra")):
        raise TypeError("prompt_id, answer, source and extra have to be text")
    if not row["prompt_id"].strip() or not isinstance(row["prompt"], str | None):
        raise TypeError("prompt_id must not be empty, and prompt has to be text")
    extra, tools = json.loads(row["extra"]), json.loads(row.get("tools") or "[]")
    if not isinstance(extra, dict):
        raise TypeError("extra has to be an object")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise TypeError("tools have to be a list of objects")
    return Prompt(
        row["prompt_id"],
        row["answer"],
        row["source"],
        row["prompt"],
        None if messages is None else tuple(map(_restored, messages)),
        extra,
        tuple(tools),
    )
