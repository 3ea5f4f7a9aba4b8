"""The same rollouts as each trainer writes them, from the fields that its released source has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Sample:
    """One response to a question at a step, with its reward and made-up token ids."""

    question: str
    gold: str
    text: str
    reward: float
    step: int
    group: int
    place: int

    @property
    def prompt_ids(self) -> list[int]:
        return [ord(c) for c in self.question]

    @property
    def ids(self) -> list[int]:
        return [ord(c) for c in self.text]

    @property
    def logprobs(self) -> list[float]:
        return [-0.25 - 0.001 * n for n in range(len(self.text))]

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Task:
    """A question, its answer, and the rewards of its responses at each step it was visited."""

    question: str
    gold: str
    visits: Mapping[int, Sequence[float]]
    wrong: str = "I think the answer is {place}."
    extra: Mapping[str, Any] = field(default_factory=dict)


TASKS = (
    Task("What is 2 + 3?", "5", {1: [1, 0, 0, 0], 2: [1, 1, 0, 1]}),
    Task("What is 4 + 4?", "8", {1: [1, 1, 1, 1], 2: [1, 1, 1, 1]}),
    Task("Name a prime above 7.", "11", {1: [0, 0, 0, 0], 2: [0, 0, 0, 0]}),
    Task("What is 10 - 4?", "7", {1: [0, 0, 0, 0]}, wrong="It is \\boxed{{6}}."),
    Task("What is 3 * 3?", "9", {2: [0, 1, 0, 1]}),
)
"""The fourth has a wrong answer."""
STATISTICS = {
    "What is 2 + 3?": (0.5, 0.75, 0.0, 2),
    "What is 4 + 4?": (1.0, 1.0, 1.0, 2),
    "Name a prime above 7.": (0.0, 0.0, 1.0, 2),
    "What is 10 - 4?": (0.0, 0.0, 1.0, 1),
    "What is 3 * 3?": (0.5, 0.5, 0.0, 1),
}
"""Raw and current pass rate, share of dead groups, and groups of each question."""


def samples(tasks: Sequence[Task] = TASKS) -> list[Sample]:
    """All responses in the order of a run: step by step, group by group."""
    steps = sorted({step for task in tasks for step in task.visits})
    rows = []
    for step in steps:
        for group, task in enumerate(tasks):
            for place, reward in enumerate(task.visits.get(step, [])):
                right = f"The answer is \\boxed{{{task.gold}}}."
                text = right if reward == 1 else task.wrong.format(place=100 + place)
                rows.append(
                    Sample(task.question, task.gold, text, float(reward), step, group, place)
                )
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _by_step(rows: Sequence[Sample]) -> dict[int, list[Sample]]:
    steps: dict[int, list[Sample]] = {}
    for row in rows:
        steps.setdefault(row.step, []).append(row)
    return steps


def advantages(rows: Sequence[Sample]) -> list[float]:
    """As TRL computes them."""
    values = []
    for row in rows:
        group = np.array([r.reward for r in rows if r.group == row.group])
        values.append(float((row.reward - group.mean()) / (group.std(ddof=1) + 1e-4)))
    return values


def write_trl(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        completions = [[{"role": "assistant", "content": r.text}] for r in members]
        table = {
            "step": [step] * len(members),
            "prompt": [r.messages for r in members],
            "completion": completions,
            "accuracy_reward": [r.reward for r in members],
            "gold": [r.gold for r in members],
            "advantage": advantages(members),
        }
        path = folder / "completions" / f"completions_{step:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)


def rendered(row: Sample) -> str:
    """A prompt as verl decodes it: the template without its marks."""
    return f"system\nYou are helpful.\nuser\n{row.question}\nassistant\n"


def write_verl(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        lines = [
            {
                "input": rendered(r),
                "output": r.text,
                "gts": r.gold,
                "score": r.reward,
                "step": step,
                "acc": bool(r.reward),
                "uid": f"u{r.group}_{r.place}_0",
            }
            for r in members
        ]
        write_lines(folder / f"{step}.jsonl", lines)


def write_openrlhf(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        lines = [
            {"input": r.question, "output": r.text, "reward": r.reward, "label": r.gold}
            for r in members
        ]
        write_lines(folder / f"step_{step}" / "output.jsonl", lines)


def episode(row: Sample) -> dict[str, Any]:
    """An episode of verifiers, as prime-rl appends it to `traces.jsonl`."""
    task = {
        "type": "Task",
        "data": {"idx": row.group, "prompt": row.question, "answer": row.gold},
        "key": f"key-{row.group}",
    }
    trace = {
        "id": f"trace-{row.step}-{row.group}-{row.place}",
        "task": task,
        "agent": {"name": "agent", "trainable": True},
        "nodes": [
            {
                "message": {"role": "user", "content": row.question},
                "sampled": False,
                "token_ids": row.prompt_ids,
                "mask": [False] * len(row.prompt_ids),
                "logprobs": [],
            },
            {
                "parent": 0,
                "message": {"role": "assistant", "content": row.text},
                "sampled": True,
                "token_ids": row.ids,
                "mask": [True] * len(row.ids),
                "logprobs": [round(p, 4) for p in row.logprobs],
            },
        ],
        "calls": [{"node": 1, "finish_reason": "stop"}],
        "rewards": {"correct": {"score": row.reward, "weight": 1.0}},
        "ok": True,
    }
    work = {"type": "train", "step": row.step, "policy": {"start": row.step, "end": row.step}}
    return {
        "id": f"episode-{row.step}-{row.group}-{row.place}",
        "env": {"id": "sums"},
        "task": task,
        "group": {"id": f"g{row.step}-{row.group}"},
        "run": {"type": "train", "id": "run", "work": work},
        "ok": True,
        "traces": [trace],
    }


def write_prime_rl(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        place = folder / "rollouts" / f"step_{step}" / "train"
        write_lines(place / "all" / "traces.jsonl", [episode(r) for r in members])
        write_lines(place / "effective" / "traces.jsonl", [episode(r) for r in members[::2]])


def gym_row(row: Sample) -> dict[str, Any]:
    """A rollout of NeMo Gym with the token ids of a model that is served for training."""
    item = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": row.text}],
        "prompt_token_ids": row.prompt_ids,
        "generation_token_ids": row.ids,
        "generation_log_probs": row.logprobs,
    }
    return {
        "responses_create_params": {"input": row.messages, "temperature": 1.0},
        "response": {"id": f"r{row.step}-{row.group}-{row.place}", "output": [item]},
        "reward": row.reward,
        "expected_answer": row.gold,
        "agent_ref": {"type": "responses_api_agents", "name": "sums"},
        "_ng_task_index": row.group,
        "_ng_rollout_index": row.place,
    }


def write_nemo_gym(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        write_lines(folder / f"step_{step}" / "rollouts.jsonl", [gym_row(r) for r in members])
        inputs = [{k: v for k, v in gym_row(r).items() if k[0] == "_"} for r in members]
        write_lines(folder / f"step_{step}" / "rollouts_materialized_inputs.jsonl", inputs)


def write_open_instruct(folder: Path, rows: Sequence[Sample]) -> None:
    lines = [
        {
            "step": r.step,
            "sample_idx": n,
            "prompt_idx": r.group,
            "prompt_tokens": r.prompt_ids,
            "response_tokens": r.ids,
            "reward": r.reward,
            "advantage": 0.0,
            "finish_reason": "stop",
            "dataset": "sums",
            "ground_truth": r.gold,
            "request_info": {"num_calls": 0, "tool_calleds": False},
            "logprobs": r.logprobs,
        }
        for n, r in enumerate(rows)
    ]
    write_lines(folder / "run_rollouts_000000.jsonl", lines)
    write_lines(folder / "run_metadata.jsonl", [{"run_name": "run", "model_name": "m"}])


def slime_sample(row: Sample) -> dict[str, Any]:
    """A sample of slime as its dump holds it."""
    return {
        "group_index": row.group,
        "index": row.place,
        "prompt": row.question,
        "tokens": [*row.prompt_ids, *row.ids],
        "response": row.text,
        "response_length": len(row.ids),
        "label": row.gold,
        "reward": row.reward,
        "loss_mask": None,
        "weight_versions": [str(row.step)],
        "rollout_log_probs": row.logprobs,
        "status": "completed",
        "metadata": {},
    }


def write_slime(folder: Path, rows: Sequence[Sample]) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for step, members in _by_step(rows).items():
        content = {"rollout_id": step, "samples": [slime_sample(r) for r in members]}
        torch.save(content, folder / f"{step}.pt")


def write_verifiers(folder: Path, rows: Sequence[Sample]) -> None:
    for step, members in _by_step(rows).items():
        lines = [
            {
                "example_id": r.group,
                "prompt": r.messages,
                "completion": [{"role": "assistant", "content": r.text}],
                "answer": r.gold,
                "reward": r.reward,
                "task": "sums",
                "info": {},
            }
            for r in members
        ]
        write_lines(folder / f"step_{step}" / "results.jsonl", lines)


def write_plain(folder: Path, rows: Sequence[Sample]) -> None:
    """One line per group, with lists of responses and rewards."""
    groups: dict[tuple[int, int], list[Sample]] = {}
    for row in rows:
        groups.setdefault((row.step, row.group), []).append(row)
    lines = [
        {
            "problem": members[0].question,
            "answer": members[0].gold,
            "responses": [r.text for r in members],
            "rewards": [r.reward for r in members],
            "step": step,
            "level": "easy",
        }
        for (step, _), members in groups.items()
    ]
    write_lines(folder / "rows.jsonl", lines)


def _batch_body(row: Sample, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a batch asks of one of OpenAI's endpoints, and what that answers."""
    if kind == "responses":
        content = [{"type": "output_text", "text": row.text}]
        return {"input": row.question}, {"output": [{"type": "message", "content": content}]}
    tokens = {"token_ids": row.ids, "finish_reason": "stop"}
    if kind == "completions":
        choice = {"text": row.text, "prompt_token_ids": row.prompt_ids, **tokens}
        return {"prompt": row.question}, {"choices": [choice]}
    message = {"role": "assistant", "content": row.text, "refusal": None}
    answer = {"choices": [{"message": message, **tokens}], "prompt_token_ids": row.prompt_ids}
    return {"messages": row.messages, "temperature": 0.7}, answer


def write_openai_batch(
    folder: Path, rows: Sequence[Sample], kind: str = "chat", requests: str = "requests"
) -> None:
    """One batch for each step, whose custom_ids begin again; somebody has added rewards."""
    for step, members in _by_step(rows).items():
        asking, results = [], []
        for number, row in enumerate(members):
            request, answer = _batch_body(row, kind)
            name = f"request-{number}"
            asking.append({"custom_id": name, "method": "POST", "url": "/v1", "body": request})
            body = {"id": f"{kind}-{step}-{number}", **answer}
            response = {"status_code": 200, "request_id": "r", "body": body}
            line = {"id": "b", "custom_id": name, "response": response, "error": None}
            results.append({**line, "reward": row.reward})
        write_lines(folder / f"step_{step}" / f"{requests}.jsonl", asking)
        write_lines(folder / f"step_{step}" / "results.jsonl", results[::-1])


def lm_eval_row(row: Sample, **changes: Any) -> dict[str, Any]:
    """A sample of a task that generates, as a filter named `strict` reads it."""
    sampling = {"do_sample": True, "temperature": 0.7, "until": ["</s>"]}
    return {
        "doc_id": row.group,
        "doc": {"question": row.question, "answer": row.gold},
        "target": row.gold,
        "arguments": {"gen_args_0": {"arg_0": row.question, "arg_1": sampling}},
        "resps": [[row.text]],
        "filtered_resps": [row.text],
        "filter": "strict",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "exact_match": row.reward,
        **changes,
    }


LM_EVAL_FILE = "samples_sums_2026-11-29T22-52-23.527575.jsonl"


def write_lm_eval(folder: Path, rows: Sequence[Sample]) -> None:
    """Rows of two filters, of which the strict one misses what is right on every second line."""
    for step, members in _by_step(rows).items():
        strict = [
            lm_eval_row(row, exact_match=row.reward if number % 2 else 0.0)
            for number, row in enumerate(members)
        ]
        lenient = [lm_eval_row(row, filter="lenient") for row in members]
        write_lines(folder / f"step_{step}" / "__models__mine" / LM_EVAL_FILE, strict + lenient)


WRITERS: dict[str, Callable[[Path, Sequence[Sample]], None]] = {
    "trl": write_trl,
    "verl": write_verl,
    "openrlhf": write_openrlhf,
    "prime-rl": write_prime_rl,
    "nemo-gym": write_nemo_gym,
    "open-instruct": write_open_instruct,
    "slime": write_slime,
    "verifiers": write_verifiers,
    "lm-eval": write_lm_eval,
    "plain": write_plain,
}
WITH_TOKENS = ("prime-rl", "nemo-gym", "open-instruct", "slime")


def write_data(path: Path, tasks: Sequence[Task] = TASKS) -> Path:
    """The rows of the data that the run was trained on."""
    rows = [{"prompt": t.question, "answer": t.gold, "level": n} for n, t in enumerate(tasks)]
    return write_lines(path, rows)
