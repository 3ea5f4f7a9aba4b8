"""NeMo Gym's rollouts (`rollouts.jsonl`) and, without them, its reward profiles.

Fields (NeMo Gym 0.5): responses_create_params with the input, response with the output items,
reward, `_ng_task_index`, `_ng_rollout_index`, agent_ref, and the row's own. Output items of models
served for training hold prompt_token_ids, generation_token_ids and generation_log_probs. A profile
(`*_reward_profiling.jsonl`) has a prompt's rewards in rollout_infos, without responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cropi.exchange.imports.logged import (
    LogFile,
    LoggedResponse,
    Row,
    Tokens,
    aligned_floats,
    other_columns,
    reward_status,
    temperature_of,
    token_array,
)
from cropi.exchange.imports.responses_api import last_message, output_items, request_prompt
from cropi.plugins import plugin
from cropi.prompts.json_values import as_text
from cropi.prompts.row_columns import ANSWER_COLUMNS, recognised
from cropi.prompts.row_files import NumberedRow

FORMAT_COLUMNS = (
    "response",
    "reward",
    "responses_create_params",
    "_ng_task_index",
    "_ng_rollout_index",
)


@plugin("rollout_format", "nemo-gym")
class NemoGymRollouts:
    """Rollouts and reward profiles of NeMo Gym."""

    def recognises(self, row: Row) -> bool:
        """Whether a row is a rollout, a failed one, or a profile with its rewards."""
        rollout = {"responses_create_params", "reward"} <= row.keys()
        failed = "_ng_failure_class" in row and "responses_create_params" in row
        return rollout or failed or {"sample", "rollout_infos"} <= row.keys()

    def responses(self, rows: Iterable[NumberedRow], file: LogFile) -> Iterator[LoggedResponse]:
        """One response per rollout, or a reward of a profile."""
        for number, row in rows:
            where = file.where(number)
            if "rollout_infos" in row:
                file.notes.add("a reward profile: rewards without responses", where)
                for info in row["rollout_infos"]:
                    response = _response({**row["sample"], **info}, file, where)
                    yield replace(response, summary=True)
            else:
                yield _response(row, file, where)


def _response(row: Row, file: LogFile, where: str) -> LoggedResponse:
    params, response = row["responses_create_params"], row.get("response")
    items = output_items(response)
    message = last_message(response, items)
    reward = file.reward(row, None if "_ng_failure_class" in row else row.get("reward"), where)
    agent = row.get("agent_ref")
    return LoggedResponse(
        prompt=request_prompt(params),
        text=message.text,
        reward=reward,
        status=reward_status(reward),
        answer=_answer(row),
        source=str(agent.get("name") or "") if isinstance(agent, Mapping) else "",
        record_id=_record_id(row, response),
        step=file.step,
        finish=message.finish,
        whole_text=message.whole_text,
        tokens=_tokens(items, where) if file.tokens else None,
        temperature=temperature_of(params.get("temperature")),
        about=other_columns(row, *FORMAT_COLUMNS) | {"responses_create_params": params},
    )


def _record_id(row: Row, response: Any) -> str:
    """The name of a rollout of a task; an id of a response alone may be a constant."""
    task, rollout = row.get("_ng_task_index"), row.get("_ng_rollout_index")
    name = response.get("id") if isinstance(response, Mapping) else None
    return "" if rollout is None or not name else f"{task}:{rollout}:{name}"


def _answer(row: Row) -> str:
    """The gold answer: a column with a usual name, of the row or of its verifier's metadata."""
    inner = row.get("verifier_metadata")
    for cells in (row, inner if isinstance(inner, Mapping) else {}):
        for column in recognised(dict(cells), ANSWER_COLUMNS):
            if isinstance(cells[column], str | int | float):
                return as_text(cells[column]).strip()
    return ""


def _tokens(items: Sequence[Row], where: str) -> Tokens | None:
    """Prompt and response of all calls, where each prompt continues what was before.

    What a later prompt adds, such as a tool's output, is masked.
    """
    calls = [item for item in items if item.get("generation_token_ids")]
    if not calls or any(not call.get("prompt_token_ids") for call in calls):
        return None
    prompt_ids = token_array(calls[0]["prompt_token_ids"], where, "prompt_token_ids")
    whole, mask, logprobs = prompt_ids.tolist(), list[int](), list[float]()
    for call in calls:
        prompt = token_array(call["prompt_token_ids"], where, "prompt_token_ids").tolist()
        ids = token_array(call["generation_token_ids"], where, "generation_token_ids").tolist()
        if prompt[: len(whole)] != whole:
            return None
        added = len(prompt) - len(whole)
        sampled = aligned_floats(call.get("generation_log_probs"), len(ids))
        logprobs += [0.0] * added + ([np.nan] * len(ids) if sampled is None else sampled.tolist())
        mask += [0] * added + [1] * len(ids)
        whole = [*prompt, *ids]
    ids_array = np.array(whole[len(prompt_ids) :], dtype=np.int32)
    masked = np.array(mask, dtype=np.uint8)
    return Tokens(
        prompt_ids,
        ids_array,
        aligned_floats(logprobs, len(ids_array)),
        None if masked.all() else masked,
    )
