"""Samples of EleutherAI's lm-evaluation-harness: `samples_<task>_<time>.jsonl` (`--log_samples`).

Fields (0.4.13): doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics, hashes, and
a column for each metric. Each of a task's filters, which take the answer out of a response, has
rows of its own for the same responses: a response is right if one of them reads it so. Where a
task samples several responses, metrics are of what a filter makes of them all, and none of a
single one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    read_prompt,
    reward_number,
    reward_status,
)
from cropi.plugins import plugin
from cropi.prompts.formats import TEMPLATE_MARKS
from cropi.prompts.json_values import as_text, parsed_json
from cropi.prompts.row_files import NumberedRow

_FILE = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT.*")


@dataclass
class _Document:
    """What the rows of a document say so far: its responses, and the filters that read them."""

    responses: list[LoggedResponse]
    filters: set[str] = field(default_factory=set)


@plugin("rollout_format", "lm-eval")
class LMEvalSamples:
    """Samples of tasks that generate; of choices by likelihood there is no response."""

    def recognises(self, row: Row) -> bool:
        """Whether a row is such a sample."""
        return {"doc_id", "doc", "arguments", "resps"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """The responses of every document, once, however many filters read them."""
        documents: dict[str, list[_Document]] = {}
        for number, row in rows:
            where = file.where(number)
            asked = _request(row)
            if asked is None:
                file.notes.add("a choice by likelihood, which is no response, left out", where)
                continue
            rewards = _rewards(row, file, where)
            name, same = str(row.get("filter", "")), documents.setdefault(str(row["doc_id"]), [])
            unread = next((each for each in same if name not in each.filters), None)
            if unread is None:
                same.append(_Document(_responses(row, asked, rewards, file, where), {name}))
                continue
            unread.filters.add(name)
            for response, reward in zip(unread.responses, rewards, strict=False):
                response.reward = float(np.fmax(response.reward, reward))
                response.status = reward_status(response.reward)
        for same in documents.values():
            for document in same:
                yield from document.responses


def _request(row: Row) -> tuple[Any, Mapping[str, Any]] | None:
    """What was asked, and how it was sampled; None where nothing was generated."""
    arguments = parsed_json(row["arguments"])
    first = next(iter(arguments.values()), None) if isinstance(arguments, Mapping) else arguments
    if isinstance(first, Mapping):
        asked, sampling = first.get("arg_0"), first.get("arg_1")
    elif isinstance(first, list) and first and isinstance(first[0], list) and len(first[0]) == 2:
        asked, sampling = first[0]  # before 0.4.4: a list of calls, each with its arguments
    else:
        return None
    if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], str):
        (asked,) = asked  # a chat that is sent to a server, written as JSON
    return (asked, sampling) if isinstance(sampling, Mapping) else None


def _texts(row: Row) -> list[str]:
    """The responses to the only request of a task that generates."""
    requests = parsed_json(row["resps"])
    texts = requests[0] if isinstance(requests, list) and requests else []
    return [as_text(each) for each in texts] if isinstance(texts, list) else [as_text(texts)]


def _rewards(row: Row, file: LogFile, where: str) -> list[float]:
    """The first metric, or what the user names, for each response; NaN where it is of several."""
    metrics = parsed_json(row.get("metrics")) or []
    value = row.get(metrics[0]) if isinstance(metrics, list) and metrics else None
    count = len(_texts(row))
    values = value if isinstance(value, list) and len(value) == count else [value]
    if count == 1:
        return [file.reward(row, values[0], where)]
    if len(values) == count:
        return [reward_number(each, where) for each in values]
    file.notes.add("a metric of several responses together, not used", where)
    return [float("nan")] * count


def _responses(
    row: Row,
    asked: tuple[Any, Mapping[str, Any]],
    rewards: list[float],
    file: LogFile,
    where: str,
) -> list[LoggedResponse]:
    prompt, (_, sampling) = read_prompt(asked[0], where), asked
    target, document = row.get("target"), parsed_json(row["doc"])
    temperature = sampling.get("temperature") if sampling.get("do_sample") is not False else None
    task = _FILE.fullmatch(file.path.name)
    return [
        LoggedResponse(
            prompt=prompt,
            text=text,
            reward=reward,
            status=reward_status(reward),
            answer=as_text(target).strip() if isinstance(target, str | int | float) else "",
            source=task["task"] if task else "",
            step=file.step_of(None, where),
            rendered=isinstance(prompt, str) and bool(TEMPLATE_MARKS.search(prompt)),
            temperature=float(temperature) if isinstance(temperature, int | float) else None,
            about=document if isinstance(document, Mapping) else {},
        )
        for text, reward in zip(_texts(row), rewards, strict=True)
    ]
