"""Samples of EleutherAI's lm-evaluation-harness: `samples_<task>_<time>.jsonl` (`--log_samples`).

Fields (0.4.13): doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics, hashes, and
a column for each metric. Up to 0.4.5 neither `filter` nor `metrics` is written. Each of a task's
filters, which take the answer out of a response, has rows of its own for the same responses: a
response is right if one of them reads it so. Where a task samples several responses, metrics are of
what a filter makes of them all, and none of a single one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    is_rendered,
    read_prompt,
    reward_number,
    reward_status,
    summed_reward,
    temperature_of,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text, parsed_json
from cropi.prompts.row_files import NumberedRow

_FIELDS = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics")
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
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
        documents: dict[tuple[str, ...], list[_Document]] = {}
        for number, row in rows:
            where = file.where(number)
            asked = _request(row)
            if asked is None:
                file.notes.add("a choice by likelihood, which is no response, left out", where)
                continue
            texts = _texts(row)
            if not texts:
                file.notes.add("without a response, left out", where)
                continue
            rewards = _rewards(row, texts, file, where)
            same = documents.setdefault((str(row["doc_id"]), str(asked[0]), *texts), [])
            name = str(row.get("filter") or f"of row {number}")
            unread = next((each for each in same if name not in each.filters), None)
            if unread is None:
                judged = list(zip(texts, rewards, strict=True))
                same.append(_Document(_responses(row, asked, judged, file, where), {name}))
                continue
            unread.filters.add(name)
            for response, reward in zip(unread.responses, rewards, strict=True):
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
    """The responses to the only request of a task that generates; an empty one for a null."""
    requests = parsed_json(row["resps"])
    texts = requests[0] if isinstance(requests, list) and requests else []
    texts = texts if isinstance(texts, list) else [texts]
    return ["" if each is None else as_text(each) for each in texts]


def _rewards(row: Row, texts: list[str], file: LogFile, where: str) -> list[float]:
    """The first metric, or what the user names, for each response; NaN where it is of several."""
    metrics = parsed_json(row.get("metrics"))
    if not isinstance(metrics, list):
        metrics = [name for name in row if name not in (*_FIELDS, *_HASHES)]
    value = row.get(metrics[0]) if metrics else None
    if len(texts) == 1:
        return [file.reward(row, value, where)]
    values = file.cells(row, where) if file.rewards else [value]
    whole = [each for each in values if isinstance(each, list) and len(each) == len(texts)]
    if len(whole) == len(values):
        numbers = [[reward_number(each, where) for each in cell] for cell in whole]
        return [summed_reward(each) for each in zip(*numbers, strict=True)]
    file.notes.add("a metric of several responses together, not used", where)
    return [float("nan")] * len(texts)


def _answer(target: Any) -> str:
    """The answer of a row. A list, as JSON or as Python shows it, holds alternatives."""
    if isinstance(target, str) and target.startswith("[") and target.endswith("]"):
        try:
            alternatives = ast.literal_eval(target)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return target
        if isinstance(alternatives, list) and all(isinstance(each, str) for each in alternatives):
            return as_text(alternatives)
    return "" if target is None else as_text(target).strip()


def _responses(
    row: Row,
    asked: tuple[Any, Mapping[str, Any]],
    judged: list[tuple[str, float]],
    file: LogFile,
    where: str,
) -> list[LoggedResponse]:
    """The responses of a row, from their texts and rewards."""
    prompt, (_, sampling) = read_prompt(asked[0], where), asked
    document = parsed_json(row["doc"])
    temperature = sampling.get("temperature") if sampling.get("do_sample") is not False else None
    task = _FILE.fullmatch(file.path.name)
    return [
        LoggedResponse(
            prompt=prompt,
            text=text,
            reward=reward,
            status=reward_status(reward),
            answer=_answer(row.get("target")),
            source=task["task"] if task else "",
            step=file.step_of(None, where),
            rendered=is_rendered(prompt),
            temperature=temperature_of(temperature),
            about=document if isinstance(document, Mapping) else {},
        )
        for text, reward in judged
    ]
