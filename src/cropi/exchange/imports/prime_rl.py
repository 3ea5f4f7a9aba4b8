"""prime-rl's `rollouts/step_<N>/{train,eval}/{all,effective}/traces.jsonl`: verifiers' episodes.

Read in prime-rl 0.8 and verifiers 0.4, whose evaluations write the same file. One line is an
episode: its task, its group, the run, and the agents' traces. A trace is a graph of messages; each
node holds the tokens that it adds, which of them the policy sampled, and their log-probs (rounded
to four decimals). `effective` repeats episodes of `all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Role,
    Row,
    Tokens,
    aligned_floats,
    finish_reason_of,
    has_more_than_content,
    other_columns,
    plain_messages,
    plain_text,
    reward_number,
    reward_status,
    token_array,
)
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_columns import ANSWER_COLUMNS, recognised
from cropi.prompts.row_files import NumberedRow

TASK_FIELDS = ("idx", "id", "name", "description", "prompt", "system_prompt")


@plugin("rollout_format", "prime-rl")
class PrimeRlEpisodes:
    """Episodes of verifiers, as prime-rl and `verifiers` evaluations write them."""

    def recognises(self, row: Row) -> bool:
        """Whether a row is an episode."""
        return isinstance(row.get("traces"), list) and isinstance(row.get("task"), Mapping)

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response for each trace that trains the policy."""
        for number, row in rows:
            where = file.where(number)
            traces = [t for t in row["traces"] if _agent(t).get("trainable", True)]
            if not traces:
                file.notes.add("an episode without a trace of the policy, left out", where)
            for trace in traces:
                yield _response(row, trace, file, where)


def _agent(trace: Row) -> Row:
    agent = trace.get("agent")
    return agent if isinstance(agent, Mapping) else {}


def _inner(row: Row, *keys: str) -> Any:
    """A value inside objects; None where one of them is not there."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _response(row: Row, trace: Row, file: LogFile, where: str) -> LoggedResponse:
    data = _inner(row, "task", "data") or {}
    nodes = _branch(trace, file, where)
    turns = [node["message"] for node in nodes if node.get("sampled")]
    reward = file.reward(trace.get("rewards") or {}, _reward(trace, where), where)
    work = _inner(row, "run", "work") or {}
    answers = recognised(dict(data), ANSWER_COLUMNS)
    calls = trace.get("calls") or [{}]
    role: Role = "eval" if _inner(work, "type") == "eval" else file.role
    return LoggedResponse(
        prompt=_prompt(data, nodes),
        text=plain_text(turns[-1].get("content")) if turns else "",
        reward=reward,
        status=reward_status(reward),
        prompt_id=_identity(row, data),
        answer=as_text(data[answers[0]]).strip() if answers else "",
        source=str(_inner(row, "env", "name") or _inner(row, "env", "id") or ""),
        group=str(_inner(row, "group", "id") or ""),
        record_id=str(trace.get("id") or ""),
        step=file.step_of(work.get("step"), where),
        role=role,
        finish=finish_reason_of(calls[-1].get("finish_reason")),
        whole_text=len(turns) == 1 and not has_more_than_content(turns[0]),
        tokens=_tokens(nodes, work, where) if file.tokens else None,
        about=other_columns(data, *TASK_FIELDS),
    )


def _identity(row: Row, data: Row) -> str:
    """The task's name in its source; else its key, by which prime-rl's samplers know it."""
    names = (data.get("id"), _inner(row, "task", "key"))
    return next((str(name) for name in names if name is not None), "")


def _reward(trace: Row, where: str) -> float | None:
    """The weighted sum of a trace's rewards; None if scoring did not run."""
    given = [r for r in (trace.get("rewards") or {}).values() if isinstance(r, Mapping)]
    if not given:
        return None
    return sum(
        reward_number(r.get("score"), where) * reward_number(r.get("weight", 1.0), where)
        for r in given
    )


def _branch(trace: Row, file: LogFile, where: str) -> list[Row]:
    """The messages from a root to the last leaf, which is the one the trace ended with."""
    nodes = [n for n in trace.get("nodes") or [] if isinstance(n, Mapping) and "message" in n]
    parents = {node.get("parent") for node in nodes}
    leaves = [place for place in range(len(nodes)) if place not in parents]
    if len(leaves) > 1:
        file.notes.add("a trace of several branches, of which the last is taken", where)
    path: list[Row] = []
    place: Any = leaves[-1] if leaves else None
    while isinstance(place, int) and 0 <= place < len(nodes) and len(path) <= len(nodes):
        path.append(nodes[place])
        place = nodes[place].get("parent")
    return path[::-1]


def _prompt(data: Row, nodes: Sequence[Row]) -> Any:
    """What was asked: the task's prompt, or the messages before the first that was sampled."""
    prompt, system = data.get("prompt"), data.get("system_prompt")
    if prompt is None:
        first = next((i for i, node in enumerate(nodes) if node.get("sampled")), len(nodes))
        return plain_messages([node["message"] for node in nodes[:first]])
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    before = [{"role": "system", "content": system}] if system else []
    return plain_messages([*before, *messages])


def _tokens(nodes: Sequence[Row], work: Row, where: str) -> Tokens | None:
    """The branch's tokens from the first that was sampled to the last; None if they are not kept.

    What was not sampled in between, such as a tool's output, is masked.
    """
    if not nodes or any(not node.get("token_ids") for node in nodes):
        return None
    ids = token_array([i for n in nodes for i in n["token_ids"]], where, "token_ids")
    mask = np.array([bool(m) for n in nodes for m in n.get("mask") or []], dtype=np.uint8)
    if len(mask) != len(ids) or not mask.any():
        return None
    start, stop = int(np.argmax(mask)), len(mask) - int(np.argmax(mask[::-1]))
    sampled = aligned_floats([p for n in nodes for p in n.get("logprobs") or []], int(mask.sum()))
    logprobs = None
    if sampled is not None:
        logprobs = np.zeros(len(ids), dtype=np.float32)
        logprobs[mask.astype(bool)] = np.minimum(sampled, 0.0)
        logprobs = logprobs[start:stop]
    inside = mask[start:stop]
    return Tokens(
        ids[:start],
        ids[start:stop],
        logprobs,
        None if inside.all() else inside,
        _versions(work, stop - start),
    )


def _versions(work: Row, length: int) -> Any:
    """The policy version of each token, where all have the same."""
    first, last = _inner(work, "policy", "start"), _inner(work, "policy", "end")
    if not isinstance(first, int) or first != last:
        return None
    return np.full(length, first, dtype=np.int32)
