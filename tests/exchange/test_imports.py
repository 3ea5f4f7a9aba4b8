"""Rollouts of any trainer say the same about the same prompts, and nothing is lost silently."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.exchange.imports.logged import LoggedResponse
from cropi.exchange.imports.pairing import pair_with_log, pair_with_prompts
from cropi.exchange.imports.rollout_folder import RolloutLog, read_rollout_log
from cropi.exchange.imports.rollout_format import all_formats
from cropi.exchange.ranking.ranking import LoggedPool, logged_pool
from cropi.prompts import load_prompts
from support.trainer_logs import (
    LM_EVAL_FILE,
    STATISTICS,
    TASKS,
    WITH_TOKENS,
    WRITERS,
    Sample,
    Task,
    episode,
    gym_row,
    lm_eval_row,
    rendered,
    samples,
    slime_sample,
    write_data,
    write_lines,
    write_openai_batch,
    write_trl,
    write_verl,
)


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "train.jsonl")


def paired(log: RolloutLog, data: Path) -> LoggedPool:
    return logged_pool(log, pair_with_prompts(log, load_prompts(data), decode), None)


def statistics(pool: LoggedPool) -> dict[str, tuple[float, float, float, int]]:
    numbers = {}
    for prompt, history in zip(pool.prompts, pool.history, strict=True):
        assert history is not None, prompt.content
        rates = (history.raw_pass_rate, history.current_pass_rate, history.uninformative_share)
        numbers[prompt.content or prompt.prompt_id] = (*rates, len(history.visits))
    return numbers


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_recognised_and_gives_the_same_numbers(
    name: str, tmp_path: Path, data: Path
) -> None:
    WRITERS[name](tmp_path / "log", samples())
    log = read_rollout_log(tmp_path / "log")
    assert log.format == name
    assert len(log.responses) == len(samples())
    assert statistics(paired(log, data)) == STATISTICS


@pytest.mark.parametrize("name", WRITERS)
def test_without_rows_of_the_data_the_log_names_the_pool(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "log", samples())
    log = read_rollout_log(tmp_path / "log")
    pairing = pair_with_log(log)
    assert len(pairing.pool) == len(TASKS)
    numbers = [v for _, v in sorted(statistics(logged_pool(log, pairing, None)).items())]
    expected = [v for _, v in sorted(STATISTICS.items())]
    if name not in ("verl", "open-instruct"):  # whose prompts read otherwise
        assert numbers == expected
    assert sorted(numbers) == sorted(expected)
    assert pairing.complete == (name not in ("verl", "open-instruct", "slime"))
    assert pairing.complete or "--prompts" in pairing.notes[0]


def test_a_row_is_of_one_format_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [episode(samples()[0]), gym_row(samples()[0])]
    rows.append(slime_sample(samples()[0]))
    for name in ("verl", "openrlhf", "open-instruct", "verifiers", "lm-eval", "plain"):
        WRITERS[name](tmp_path / name, samples()[:4])
        path = next(p for p in (tmp_path / name).rglob("*.jsonl") if "meta" not in p.name)
        rows.append(json.loads(path.read_text().splitlines()[0]))
    for row in rows:
        special = [n for n, f in all_formats().items() if n != "plain" and f.recognises(row)]
        assert len(special) <= 1, (special, sorted(row))


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_token_ids_and_logprobs_are_kept_as_they_are(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "log", samples())
    log = read_rollout_log(tmp_path / "log")
    for response, sample in zip(log.responses, samples(), strict=True):
        tokens = response.tokens
        assert tokens is not None
        assert tokens.prompt_ids.tolist() == sample.prompt_ids
        assert tokens.ids.tolist() == sample.ids
        assert tokens.logprobs is not None
        np.testing.assert_allclose(tokens.logprobs, sample.logprobs, atol=1e-4)
        assert tokens.loss_mask is None


@pytest.mark.parametrize("requests", ["asked", "will_be_read_last"])
@pytest.mark.parametrize("kind", ["chat", "completions", "responses"])
def test_a_batch_is_read_with_its_requests_whichever_file_comes_first(
    kind: str, requests: str, tmp_path: Path, data: Path
) -> None:
    write_openai_batch(tmp_path / "log", samples(), kind, requests)
    log = read_rollout_log(tmp_path / "log", rewards=["reward"])
    assert log.format == "openai-batch"
    assert statistics(paired(log, data)) == STATISTICS
    assert len(pair_with_log(log).pool) == len(TASKS)
    for response in log.responses if kind != "responses" else []:
        assert response.tokens is not None
        assert response.tokens.prompt_ids.tolist() == [ord(c) for c in _question_of(response)]
        assert response.tokens.ids.tolist() == [ord(c) for c in response.text]
        assert response.tokens.logprobs is None


def _question_of(response: LoggedResponse) -> str:
    prompt = response.prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _batch(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests and the results of the first step's batch."""
    write_openai_batch(folder, samples())
    names = ("requests.jsonl", "results.jsonl")
    texts = [(folder / "step_1" / name).read_text().splitlines() for name in names]
    return [json.loads(x) for x in texts[0]], [json.loads(x) for x in texts[1]]


def test_a_request_that_failed_is_no_wrong_answer(tmp_path: Path) -> None:
    requests, results = _batch(tmp_path / "made")
    refused = {"status_code": 429, "body": {"error": {"message": "busy"}}}
    failed = [
        {**results[0], "response": refused},
        {**results[1], "response": None, "error": {"code": "batch_expired"}},
    ]
    write_lines(tmp_path / "log" / "errors.jsonl", failed)
    write_lines(tmp_path / "log" / "requests.jsonl", requests)
    write_lines(tmp_path / "log" / "results.jsonl", results[2:])
    log = read_rollout_log(tmp_path / "log")
    assert len(log.responses) == len(results) - 2
    assert "request that failed, left out: 2 rows" in log.notes[0]


def test_results_without_their_requests_name_rows_by_id(tmp_path: Path, data: Path) -> None:
    _, results = _batch(tmp_path / "made")
    names = [row["custom_id"] for row in results]
    rows = [{"id": name, "prompt": f"{name}?", "answer": "5"} for name in names]
    by_id = write_lines(tmp_path / "rows.jsonl", rows)
    log = read_rollout_log(write_lines(tmp_path / "results.jsonl", results))
    pairing = pair_with_prompts(log, load_prompts(by_id))
    assert pairing.indices == list(range(len(results)))
    with pytest.raises(InputError, match=r"ids alone.*the file of a batch's requests"):
        pair_with_prompts(log, load_prompts(data))


def test_two_batches_of_one_folder_are_not_mixed_up(tmp_path: Path) -> None:
    requests, _ = _batch(tmp_path / "made")
    write_lines(tmp_path / "log" / "first.jsonl", requests)
    write_lines(tmp_path / "log" / "second.jsonl", requests)
    with pytest.raises(InputError, match="is of the format openai-batch and holds no response"):
        read_rollout_log(tmp_path / "log")
    write_lines(tmp_path / "log" / "second.jsonl", [{**requests[0], "body": requests[-1]["body"]}])
    with pytest.raises(
        InputError, match=r"second.jsonl row 1 has the custom_id 'request-0' .* own"
    ):
        read_rollout_log(tmp_path / "log")


def _read_lm_eval(folder: Path, *rows: dict[str, Any], **options: Any) -> RolloutLog:
    return read_rollout_log(write_lines(folder / LM_EVAL_FILE, rows), **options)


def test_samples_of_lm_eval_name_their_task_answer_and_temperature(tmp_path: Path) -> None:
    (response,) = _read_lm_eval(tmp_path, lm_eval_row(samples()[0])).responses
    assert (response.source, response.answer, response.temperature) == ("sums", "5", 0.7)
    assert response.about == {"question": "What is 2 + 3?", "answer": "5"}


CHAT = '[{"role": "user", "content": "2 + 3?"}]'


@pytest.mark.parametrize(
    "arguments",
    [
        {"gen_args_0": {"arg_0": [CHAT], "arg_1": {}}},
        {"gen_args_0": {"arg_0": CHAT, "arg_1": {}}},
        [[CHAT, {"until": []}]],
    ],
)
def test_chats_and_calls_of_older_lm_evals_are_read(arguments: Any, tmp_path: Path) -> None:
    log = _read_lm_eval(tmp_path, lm_eval_row(samples()[0], arguments=arguments))
    assert log.responses[0].prompt == ({"role": "user", "content": "2 + 3?"},)


def test_a_metric_of_several_responses_of_lm_eval_is_no_reward(tmp_path: Path) -> None:
    row = lm_eval_row(samples()[0], resps=[["5", "6", "5"]])
    log = _read_lm_eval(tmp_path, row, unjudged=True)
    assert [(r.text, r.status) for r in log.responses] == [(t, "error") for t in ("5", "6", "5")]
    assert "metric of several responses together, not used: 1 row" in log.notes[0]
    log = _read_lm_eval(tmp_path, {**row, "exact_match": [1.0, 0.0, 1.0]})
    assert [r.reward for r in log.responses] == [1, 0, 1]
    log = _read_lm_eval(tmp_path, {**row, "acc": [0, 1, 1], "f1": [1, 1, 0]}, rewards=["acc", "f1"])
    assert [r.reward for r in log.responses] == [1, 2, 1]


def test_filters_of_older_lm_evals_have_no_name(tmp_path: Path) -> None:
    row = lm_eval_row(samples()[0], exact_match=0.0)
    older = {key: cell for key, cell in row.items() if key not in ("filter", "metrics")}
    log = _read_lm_eval(tmp_path, older, {**older, "exact_match": 1.0})
    assert [r.reward for r in log.responses] == [1]


def test_other_responses_to_a_document_of_lm_eval_are_of_their_own(tmp_path: Path) -> None:
    row = lm_eval_row(samples()[0], exact_match=0.0)
    log = _read_lm_eval(tmp_path, row, {**row, "filter": "lenient", "resps": [["6"]]}, row)
    assert [r.text for r in log.responses] == [row["resps"][0][0]] * 2 + ["6"]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("['5', 'five']", '["5", "five"]'),
        (["5", "five"], '["5", "five"]'),
        ("[2, 3]", "[2, 3]"),
        ("[0, 1) ]", "[0, 1) ]"),
        (5, "5"),
        (None, ""),
    ],
)
def test_targets_of_lm_eval_may_be_alternatives(target: Any, answer: str, tmp_path: Path) -> None:
    log = _read_lm_eval(tmp_path, lm_eval_row(samples()[0], target=target))
    assert log.responses[0].answer == answer


def test_rows_of_lm_eval_without_a_response_are_left_out(tmp_path: Path) -> None:
    row = lm_eval_row(samples()[0])
    log = _read_lm_eval(tmp_path, *({**row, "resps": resps} for resps in ([[None]], [[]], None)))
    assert [r.text for r in log.responses] == [""]
    assert "without a response, left out: 2 rows" in log.notes[0]


def test_choices_by_likelihood_are_left_out_and_counted(tmp_path: Path) -> None:
    choice = lm_eval_row(
        samples()[0],
        arguments={"gen_args_0": {"arg_0": "2 + 3?", "arg_1": " 5"}},
        resps=[[["-1.5", "False"]]],
    )
    log = _read_lm_eval(tmp_path, choice, lm_eval_row(samples()[1]))
    assert len(log.responses) == 1
    assert "choice by likelihood, which is no response, left out: 1 row" in log.notes[0]
    with pytest.raises(InputError, match=r"holds no response .*choice by likelihood"):
        _read_lm_eval(tmp_path, choice)


def conversation() -> dict[str, Any]:
    """An episode whose policy calls a tool, and goes on after its output."""
    row = episode(samples()[0])
    nodes = row["traces"][0]["nodes"]
    nodes[1]["message"]["tool_calls"] = [{"id": "1", "name": "sum", "arguments": "{}"}]
    tool = {"role": "tool", "content": "5"}
    nodes.append({"parent": 1, "message": tool, "token_ids": [7, 8], "mask": [False] * 2})
    answer = {"role": "assistant", "content": "So 5."}
    ids, mask = [9, 10, 11], [False, True, True]
    nodes.append({"parent": 2, "message": answer, "sampled": True, "token_ids": ids, "mask": mask,
                  "logprobs": [-1.0, -2.0]})  # fmt: skip
    return row


def test_what_the_policy_did_not_sample_is_masked(tmp_path: Path) -> None:
    log = read_rollout_log(write_lines(tmp_path / "traces.jsonl", [conversation()]))
    (response,) = log.responses
    assert not response.whole_text
    assert response.text == "So 5."
    assert response.tokens is not None
    first = len(samples()[0].ids)
    assert response.tokens.loss_mask is not None
    assert response.tokens.loss_mask.tolist() == [1] * first + [0, 0, 0, 1, 1]
    assert response.tokens.logprobs is not None
    assert response.tokens.logprobs[-5:].tolist() == [0, 0, 0, -1, -2]
    assert response.tokens.policy_versions is not None
    assert set(response.tokens.policy_versions.tolist()) == {1}


def test_calls_of_a_gym_rollout_are_one_response_with_a_mask(tmp_path: Path) -> None:
    row = gym_row(samples()[0])
    first = row["response"]["output"][0]
    before = [*first["prompt_token_ids"], *first["generation_token_ids"]]
    again = {**first, "prompt_token_ids": [*before, 3, 4], "generation_token_ids": [5],
             "generation_log_probs": [-0.5]}  # fmt: skip
    row["response"]["output"] = [first, {"type": "function_call_output", "output": "x"}, again]
    (response,) = read_rollout_log(write_lines(tmp_path / "r.jsonl", [row])).responses
    assert response.tokens is not None
    assert response.tokens.loss_mask is not None
    assert response.tokens.ids[-3:].tolist() == [3, 4, 5]
    assert response.tokens.loss_mask[-3:].tolist() == [0, 0, 1]


def test_a_named_column_is_the_reward_whatever_it_is_called(tmp_path: Path) -> None:
    several = {"problem": "q", "answer": "1", "generations": ["a", "b"], "checked": [True, False]}
    single = {"input": "q", "output": "a", "quality": 0.5}
    dotted = {"prompt": "q", "response": "a", "reward": {"acc": 1, "len": 0.2}}
    for number, (row, name, rewards) in enumerate(
        [
            (several, "checked", [1, 0]),
            (single, "quality", [0.5]),
            (dotted, "reward.acc", [1]),
            ({"input": "q", "output": "a", "metadata": {"r": 0.2}}, "metadata.r", [0.2]),
            ({"input": "q", "output": "a", "metadata": '{"r": {"x": 1}}'}, "metadata.r.x", [1]),
        ]
    ):
        path = write_lines(tmp_path / f"{number}.jsonl", [row])
        assert [r.reward for r in read_rollout_log(path, None, [name]).responses] == rewards
        with pytest.raises(InputError, match="reward"):
            read_rollout_log(path)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "1", "response": "1"},
        {"prompt": "q", "outputs": [{"text": "1"}, {"text": "2"}]},
        {"problem": "q", "generations": ["1", "2"], "finish_reason": "stop"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1"}]},
    ],
)
def test_responses_without_a_reward_are_read_where_a_verifier_will_judge(
    row: dict[str, Any], tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=r"no reward.*--reward.*--verifier"):
        read_rollout_log(path)
    log = read_rollout_log(path, unjudged=True)
    assert [each.status for each in log.responses] == ["error"] * len(log.responses)
    assert [each.text for each in log.responses] in (["1"], ["1", "2"])


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"problem": "q", "generations": ["a", "b"], "checked": [1, 0]}, "generations, checked"),
        ({"input": "q", "output": "a", "quality": 0.5}, "output, quality"),
        ({"prompt": "q", "response": "a", "reward": 1}, "response, reward"),
        ({"input": "q", "output": "a", "score": 1, "step": 1, "more": {"acc": 1}}, "more.acc"),
        ({"prompt": "q", "response": "a", "reward": 1, "more": '{"acc": 1}'}, "more.acc"),
    ],
)
@pytest.mark.parametrize("name", ["absent", "more.absent"])
def test_a_reward_that_is_not_there_is_named_beside_those_that_are(
    row: dict[str, Any], columns: str, name: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=rf"no column {name} .*{columns}.*--reward"):
        read_rollout_log(path, rewards=[name])


@pytest.mark.parametrize("listed", [False, True], ids=["single rows", "lists"])
@pytest.mark.parametrize(
    ("correct", "form", "reward"),
    [(1, 0.5, 1.5), (1, None, 1), (None, 0.5, 0.5), (None, None, float("nan"))],
)
def test_of_several_rewards_those_that_a_response_has_are_added(
    correct: float | None, form: float | None, reward: float, listed: bool, tmp_path: Path
) -> None:
    rewards: dict[str, Any] = {"correct": correct, "form": form}
    if listed:
        rewards = {name: [value, 1] for name, value in rewards.items()}
    row = {"prompt": "q", "responses" if listed else "response": ["a", "b"] if listed else "a"}
    path = write_lines(tmp_path / "rows.jsonl", [{**row, **rewards}])
    log = read_rollout_log(path, rewards=["correct", "form"])
    assert log.responses[0].reward == pytest.approx(reward, nan_ok=True)
    assert log.responses[0].status == ("error" if np.isnan(reward) else "ok")


def test_a_column_of_rewards_that_one_row_leaves_empty_counts_in_the_others(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "responses": ["a", "b"], "correct": [1, 0], "form": [0.5, 0.5]},
        {"prompt": "p", "responses": ["a", "b"], "correct": [1, 0], "form": None},
    ]
    log = read_rollout_log(write_lines(tmp_path / "r.jsonl", rows), rewards=["correct", "form"])
    assert [response.reward for response in log.responses] == [1.5, 0.5, 1, 0]


def test_a_copy_of_a_file_counts_once(tmp_path: Path, data: Path) -> None:
    write_verl(tmp_path / "log", samples())
    copy = tmp_path / "log" / "backup" / "1.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "log" / "1.jsonl").read_bytes())
    log = read_rollout_log(tmp_path / "log")
    assert statistics(paired(log, data)) == STATISTICS
    assert any("is a copy of" in note for note in log.notes)


def spread(rows: list[dict[str, Any]]) -> bytes:
    """One row after the other, each over several lines, as `jq .` writes them."""
    return "\n".join(json.dumps(row, indent=2) for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("b.jsonl", lambda rows: json.dumps(rows, indent=1, sort_keys=True).encode()),
        ("b.jsonl", spread),
        ("b.parquet", parquet),
        ("b.jsonl", lambda rows: "\n".join(map(json.dumps, reversed(rows))).encode()),
    ],
    ids=["one list, keys sorted", "spread over lines", "parquet", "rows reversed"],
)
def test_a_log_that_is_there_twice_counts_once_however_it_is_written(
    name: str, write: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"q{n}", "response": f"r{n}", "reward": n % 2, "extra": {"z": n, "a": None}}
        for n in range(6)
    ]
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / name).write_bytes(write(rows))
    log = read_rollout_log(tmp_path)
    assert len(log.responses) == 6
    assert any(f"{name} is a copy of a.jsonl" in note for note in log.notes)
    (tmp_path / name).write_bytes(write([*rows[:-1], {**rows[-1], "reward": 0}]))
    assert len(read_rollout_log(tmp_path).responses) == 12


def test_a_file_without_a_whole_row_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", \n"response": ')
    with pytest.raises(InputError, match=r"no rollouts .*a\.jsonl: 2 rows half written"):
        read_rollout_log(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"responses_create_params": None, "reward": 1.0},
        {"task": {"data": {}}, "traces": [None]},
        {"prompt": "q", "completion": "a", "advantage": "x", "r_reward": 1.0, "step": 1},
        {"tokens": [1], "response": "a", "response_length": None, "reward": 1},
        {"tokens": [1], "response": "a", "response_length": 1, "reward": 10**400},
        {"tokens": [1, 2], "response": "a", "response_length": 1, "reward": 1}
        | {"weight_versions": [10**30]},
        {"prompt_tokens": {}, "response_tokens": [1], "reward": 1.0},
    ],
)
def test_a_row_of_another_structure_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "log.jsonl", [row])
    with pytest.raises(InputError, match=r"log.jsonl row 1\b"):
        read_rollout_log(path)


PYTHON_CHAT = "[{'role': 'user', 'content': 'q'}]"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PYTHON_CHAT, "response": "a", "reward": 1.0},
        {"prompt": PYTHON_CHAT, "completion": "a", "advantage": 0.0, "r_reward": 1.0, "step": 1},
        {"prompt": PYTHON_CHAT, "completion": "a", "example_id": 1, "reward": 1.0},
        {"tokens": [1, 2], "response": "a", "response_length": 1, "reward": 1}
        | {"prompt": PYTHON_CHAT},
        {"custom_id": "a", "body": {"prompt": PYTHON_CHAT}},
    ],
    ids=["plain", "trl", "verifiers", "slime", "openai-batch"],
)
def test_a_chat_as_python_shows_it_is_refused_by_its_row(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    path = write_lines(tmp_path / "log.jsonl", [row])
    with pytest.raises(InputError, match=r"log.jsonl row 1 holds a chat as text that is not JSON"):
        read_rollout_log(path)


STEPPED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "trl": lambda step: (
        {"step": step, "prompt": "q", "completion": "a", "r_reward": 1.0} | {"advantage": 0.0}
    ),
    "verl": lambda step: {"step": step, "input": "q", "output": "a", "score": 1.0},
    "openrlhf": lambda step: {"step": step, "input": "q", "output": "a", "reward": 1.0},
    "open-instruct": lambda step: (
        {"step": step, "prompt_tokens": [1], "response_tokens": [2]} | {"reward": 1.0}
    ),
    "prime-rl": lambda step: (
        {"task": {}, "traces": [{"rewards": {}}]} | {"run": {"work": {"step": step}}}
    ),
    "plain": lambda step: {"step": step, "problem": "q", "response": "a", "reward": 1.0},
}


@pytest.mark.parametrize("name", STEPPED)
def test_what_is_no_step_is_noted_and_the_files_is_used(tmp_path: Path, name: str) -> None:
    wrong = [10**30, 1e308, -1, 0.5, True, "first", [1]]
    rows = [STEPPED[name](step) for step in [3, *wrong, None]]
    write_lines(tmp_path / "step_7" / "log.jsonl", rows)
    log = read_rollout_log(tmp_path, name)
    assert [r.step for r in log.responses] == [3] + [7] * (len(wrong) + 1)
    (note,) = [n for n in log.notes if "a step that is not a whole number from 0 on" in n]
    assert f"{len(wrong)} rows" in note


def test_a_folder_with_a_number_beyond_all_steps_names_none(tmp_path: Path) -> None:
    row = {"input": "q", "output": "a", "reward": 1.0}
    write_lines(tmp_path / f"step_{'9' * 30}" / "log.jsonl", [row])
    assert read_rollout_log(tmp_path).responses[0].step is None


def test_of_a_whole_conversation_the_response_is_what_follows_the_question(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    log = read_rollout_log(write_lines(tmp_path / "a.jsonl", [{"messages": messages, "reward": 1}]))
    assert (log.responses[0].prompt, log.responses[0].text) == (tuple(messages[:1]), "a")
    assert log.responses[0].whole_text


SAID = ["It is 5.", "It is 6."]
CHAT = [{"role": "user", "content": "2 + 3?"}]
ANSWERED = [[{"role": "assistant", "content": text}] for text in SAID]
SAME_ROWS: dict[str, list[dict[str, Any]]] = {
    "objects": [
        {
            "prompt": CHAT,
            "answer": "5",
            "samples": [{"text": t, "reward": r} for t, r in zip(SAID, (1, 0), strict=True)],
        }
    ],
    "messages of objects": [
        {
            "prompt": CHAT,
            "answer": "5",
            "rollouts": [
                {"message": m[0], "score": r} for m, r in zip(ANSWERED, (True, False), strict=True)
            ],
        }
    ],
    "chats as JSON": [
        {
            "prompt": json.dumps(CHAT),
            "answer": "5",
            "completion": json.dumps(m),
            "reward": r,
        }
        for m, r in zip(ANSWERED, ("1.0", "0"), strict=True)
    ],
    "words": [
        {"messages": CHAT, "answer": "5", "response": t, "correct": r}
        for t, r in zip(SAID, ("True", "false"), strict=True)
    ],
    "lists of one": [
        {"messages": CHAT, "answer": "5", "response": t, "reward": [r]}
        for t, r in zip(SAID, (1.0, 0.0), strict=True)
    ],
}


@pytest.mark.parametrize("name", SAME_ROWS)
def test_rows_that_say_the_same_are_read_the_same(name: str, tmp_path: Path) -> None:
    log = read_rollout_log(write_lines(tmp_path / "rows.jsonl", SAME_ROWS[name]))
    assert [(r.prompt, r.text, r.reward, r.answer) for r in log.responses] == [
        (tuple(CHAT), SAID[0], 1.0, "5"),
        (tuple(CHAT), SAID[1], 0.0, "5"),
    ]
    assert all(r.whole_text for r in log.responses)


def test_a_response_that_begins_like_json_is_a_text(tmp_path: Path) -> None:
    texts = ['[{"role": "user"', '[{"a": 1}]', '{"answer": 5}', "[{}, 3]"]
    rows = [{"question": "2 + 3?", "response": text, "reward": 1} for text in texts]
    log = read_rollout_log(write_lines(tmp_path / "rows.jsonl", rows))
    assert [response.text for response in log.responses] == texts


@pytest.mark.parametrize("name", ["plain", "slime", "verl"])
def test_of_rewards_by_name_the_user_picks(name: str, tmp_path: Path) -> None:
    sample = samples()[0]
    named = {"accuracy": 1.0, "format": 0.5}
    rows: dict[str, dict[str, Any]] = {
        "plain": {"question": "2 + 3?", "response": "5", "reward": named},
        "slime": {**slime_sample(sample), "reward": named},
        "verl": {"input": "2 + 3?", "output": "5", "gts": "5", "score": named, "step": 1},
    }
    path = write_lines(tmp_path / "rows.jsonl", [rows[name]])
    with pytest.raises(InputError, match=r"several rewards by name .*accuracy, format.*--reward"):
        read_rollout_log(path)
    for picked, expected in ((["accuracy"], 1.0), (["accuracy", "format"], 1.5)):
        (response,) = read_rollout_log(path, rewards=picked).responses
        assert response.reward == expected


def test_a_list_of_one_is_what_is_in_it(tmp_path: Path) -> None:
    WRITERS["open-instruct"](tmp_path / "log", samples()[:4])
    path = next((tmp_path / "log").glob("*rollouts*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lists = [{**r, "ground_truth": [r["ground_truth"]], "dataset": [r["dataset"]]} for r in rows]
    before = read_rollout_log(path).responses
    after = read_rollout_log(write_lines(path, lists)).responses
    assert [(r.answer, r.source) for r in after] == [(r.answer, r.source) for r in before]


def test_a_call_whose_output_is_not_told_apart_has_no_token_of_the_policys(tmp_path: Path) -> None:
    WRITERS["open-instruct"](tmp_path, samples())
    path = tmp_path / "run_rollouts_000000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["request_info"] = {"num_calls": 2, "tool_calleds": True}
    log = read_rollout_log(write_lines(path, rows))
    masks = [r.tokens.loss_mask for r in log.responses if r.tokens is not None]
    assert masks[0] is not None
    assert not masks[0].any()
    assert all(mask is None for mask in masks[1:])
    assert len(pair_with_log(log).pool) == len(TASKS)
    assert any("a tool call, whose output is not marked" in note for note in log.notes)


def test_thoughts_that_are_logged_apart_are_missing_from_the_text(tmp_path: Path) -> None:
    row = gym_row(samples()[0])
    row["response"]["output"].insert(0, {"type": "reasoning", "summary": [{"text": "Hm."}]})
    chat = {"prompt": "q", "reward": 1}
    answer = [{"role": "assistant", "content": "5", "reasoning_content": "Hm."}]
    files = [
        [row],
        [{**chat, "completion": answer}],
        [{**chat, "completion": answer[0]["content"]}],
    ]
    whole = []
    for number, rows in enumerate(files):
        log = read_rollout_log(write_lines(tmp_path / f"{number}.jsonl", rows))
        whole.append(log.responses[0].whole_text)
    assert whole == [False, False, True]


def test_equal_ids_of_different_responses_lose_nothing(tmp_path: Path) -> None:
    rows = [gym_row(sample) for sample in samples()]
    for row in rows:
        row["response"]["id"] = "mock"
    path = write_lines(
        tmp_path / "r.jsonl", [{**r, "_ng_task_index": n} for n, r in enumerate(rows)]
    )
    assert len(read_rollout_log(path).responses) == len(rows)
    for row in rows:
        del row["_ng_rollout_index"]
    assert len(read_rollout_log(write_lines(path, rows)).responses) == len(rows)


def test_a_profile_beside_its_rollouts_counts_nothing_twice(tmp_path: Path) -> None:
    rows = [gym_row(sample) for sample in samples() if sample.step == 1]
    profile: dict[int, dict[str, Any]] = {}
    for row in rows:
        task = row["_ng_task_index"]
        sample = {k: row[k] for k in ("responses_create_params", "expected_answer", "agent_ref")}
        entry = profile.setdefault(
            task, {"_ng_task_index": task, "sample": sample, "rollout_infos": []}
        )
        info = {k: row[k] for k in ("reward", "_ng_task_index", "_ng_rollout_index")}
        entry["rollout_infos"].append(info)
    path = write_lines(tmp_path / "rollouts_reward_profiling.jsonl", list(profile.values()))
    alone = read_rollout_log(path)
    assert [r.reward for r in alone.responses] == [row["reward"] for row in rows]
    write_lines(tmp_path / "rollouts.jsonl", rows)
    both = read_rollout_log(tmp_path)
    assert len(both.responses) == len(rows)
    assert all(response.text for response in both.responses)
    assert any("summaries" in note for note in both.notes)


def test_files_may_be_compressed_and_lines_half_written(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "log"
    write_verl(folder, samples())
    first, second = folder / "1.jsonl", folder / "2.jsonl"
    lines = first.read_text() + '{"input": "half a li'
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.output_stream(str(folder / "2.jsonl.zst"), "zstd") as stream:
        stream.write(second.read_bytes())
    first.unlink()
    second.unlink()
    log = read_rollout_log(folder)
    assert statistics(paired(log, data)) == STATISTICS
    assert any("1.jsonl.gz: 1 row half written" in note for note in log.notes)


def test_a_cut_archive_is_read_up_to_the_cut_and_said(tmp_path: Path) -> None:
    write_verl(tmp_path / "log", samples())
    path = tmp_path / "log" / "1.jsonl"
    whole = gzip.compress((path.read_text() * 200).encode(), mtime=0)
    path.unlink()
    (tmp_path / "log" / "1.jsonl.gz").write_bytes(whole[: len(whole) * 2 // 3])
    log = read_rollout_log(tmp_path / "log")
    assert len(log.responses) > 16
    assert any("breaks off" in note for note in log.notes)


def test_steps_are_those_of_folders_and_files_without_a_column(tmp_path: Path) -> None:
    row = {"prompt": "q", "response": "a", "reward": 1}
    for place in (
        "global_step_3/a.jsonl",
        "checkpoint-7/rank_0/b.jsonl",
        "12.jsonl",
        "iter_0005.jsonl",
    ):
        write_lines(tmp_path / place, [row])
    log = read_rollout_log(tmp_path)
    assert sorted(r.step or 0 for r in log.responses) == [3, 5, 7, 12]


def test_runs_in_one_folder_are_named(tmp_path: Path) -> None:
    write_trl(tmp_path / "first", samples())
    write_trl(tmp_path / "second", samples(TASKS[:3]))
    log = read_rollout_log(tmp_path)
    assert any("2 folders" in note and "'first', 'second'" in note for note in log.notes)
    write_trl(tmp_path / "alone" / "only", samples())
    assert not any("runs" in n for n in read_rollout_log(tmp_path / "alone").notes)


def test_what_is_logged_again_counts_once(tmp_path: Path, data: Path) -> None:
    write_trl(tmp_path / "log", samples())
    folder = tmp_path / "log" / "completions"
    for step in (3, 4):  # logged before the next batch was generated
        (folder / f"completions_0000{step}.parquet").write_bytes(
            (folder / "completions_00002.parquet").read_bytes()
        )
    log = read_rollout_log(tmp_path / "log")
    assert statistics(paired(log, data)) == STATISTICS
    assert any("logged again" in note for note in log.notes)


def test_an_episode_in_two_subsets_counts_once(tmp_path: Path) -> None:
    WRITERS["prime-rl"](tmp_path, samples())
    assert any("logged twice" in note for note in read_rollout_log(tmp_path).notes)


def test_other_files_of_a_run_are_left_out_and_counted(tmp_path: Path, data: Path) -> None:
    write_verl(tmp_path / "log", samples())
    write_lines(tmp_path / "log" / "metrics.jsonl", [{"loss": 1.0}])
    (tmp_path / "log" / "config.json").write_text("{}")
    (tmp_path / "log" / "optimizer.pt").write_bytes(b"not a dump")
    log = read_rollout_log(tmp_path / "log")
    assert statistics(paired(log, data)) == STATISTICS
    assert any("2 other files" in note for note in log.notes)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: Path) -> None:
    write_trl(tmp_path / "log", samples())
    whole = (tmp_path / "log" / "completions" / "completions_00002.parquet").read_bytes()
    (tmp_path / "log" / "completions" / "completions_00003.parquet").write_bytes(whole[:-200])
    log = read_rollout_log(tmp_path / "log")
    assert statistics(paired(log, data)) == STATISTICS
    assert any("cannot be read" in n and "completions_00003.parquet" in n for n in log.notes)


def test_evaluations_are_not_of_the_pool(tmp_path: Path, data: Path) -> None:
    write_verl(tmp_path / "log" / "train", samples())
    write_verl(tmp_path / "log" / "validation_data", [s for s in samples() if s.step == 1])
    pool = paired(read_rollout_log(tmp_path / "log"), data)
    assert statistics(pool) == STATISTICS
    assert any("evaluations" in note for note in pool.notes)


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    write_verl(tmp_path / "a", samples())
    write_trl(tmp_path / "b", samples())
    with pytest.raises(InputError, match=r"of trl .* and .* of verl|of verl .* and .* of trl"):
        read_rollout_log(tmp_path)
    assert read_rollout_log(tmp_path / "a", "verl").format == "verl"
    assert read_rollout_log(tmp_path, "verl").format == "verl"


def test_a_folder_without_rollouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rollouts"):
        read_rollout_log(tmp_path)
    write_lines(tmp_path / "a.jsonl", [{"loss": 1}])
    with pytest.raises(InputError, match="its columns are"):
        read_rollout_log(tmp_path)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read_rollout_log(tmp_path / "absent")


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_dump_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"samples": [Runs()]}, "0.pt", pickle_module=pickle)
    with pytest.raises(InputError, match="as plain data"):
        read_rollout_log(Path("0.pt"))
    assert not Path("ran").exists()


# Pairing


def test_responses_without_a_row_are_counted(tmp_path: Path, data: Path) -> None:
    stranger = Sample("Who are you?", "me", "me", 1.0, 1, 9, 0)
    write_verl(tmp_path / "log", [*samples(), stranger])
    pool = paired(read_rollout_log(tmp_path / "log"), data)
    assert statistics(pool) == STATISTICS
    assert any("1 response of 1 prompt that --prompts does not" in note for note in pool.notes)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_row_is_found_however_unicode_writes_it(forms: tuple[str, str], tmp_path: Path) -> None:
    of_log, of_data = (unicodedata.normalize(form, "Wie groß ist Ö?") for form in forms)
    rows = [{"prompt": of_log, "response": "a", "reward": 1}]
    both = [*rows, {"prompt": of_data, "response": "b", "reward": 0}]
    log = read_rollout_log(write_lines(tmp_path / "log.jsonl", both))
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": of_data, "answer": "1"}])
    pairing = pair_with_prompts(log, load_prompts(data))
    assert pairing.indices == [0, 0]
    assert [prompt.prompt for prompt in pairing.pool] == [of_data]
    assert pair_with_log(log).indices == [0, 0]


def test_rows_of_other_data_are_refused(tmp_path: Path) -> None:
    write_verl(tmp_path / "log", samples())
    other = write_data(tmp_path / "o.jsonl", [Task("Something else entirely", "1", {})])
    with pytest.raises(InputError, match=r"no response of .* belongs to a row"):
        paired(read_rollout_log(tmp_path / "log"), other)


def test_a_question_within_another_is_not_taken_for_it(tmp_path: Path) -> None:
    tasks = [
        Task("What is 1 + 1?", "2", {1: [1, 0]}),
        Task("Tell me. What is 1 + 1? And 2 + 2?", "2, 4", {1: [0, 0]}),
    ]
    write_verl(tmp_path / "log", samples(tasks))
    pool = paired(read_rollout_log(tmp_path / "log"), write_data(tmp_path / "d.jsonl", tasks))
    assert [h and h.raw_pass_rate for h in pool.history] == [0.5, 0.0]


@pytest.mark.parametrize("write", [write_trl, write_verl])
def test_of_several_rows_with_one_text_the_log_picks_by_its_answer_or_none(
    write: Any, tmp_path: Path
) -> None:
    tasks = [
        Task("Same?", "1", {1: [1, 0]}),
        Task("Same?", "2", {}),
        Task("Odd?", "3", {1: [0, 1]}),
    ]
    write(tmp_path / "log", samples(tasks))
    pool = paired(read_rollout_log(tmp_path / "log"), write_data(tmp_path / "d.jsonl", tasks))
    if write is write_verl:
        assert [h is not None for h in pool.history] == [True, False, True]
    else:  # TRL logs no answers
        assert [h is not None for h in pool.history] == [False, False, True]
        assert any("appear in several rows" in note for note in pool.notes)


def test_a_conversation_is_not_found_by_its_last_words(tmp_path: Path) -> None:
    def chat(first: str) -> list[dict[str, str]]:
        turns = [("user", first), ("assistant", "Well."), ("user", "Go on.")]
        return [{"role": role, "content": text} for role, text in turns]

    rows = [{"prompt": chat("A"), "response": "x", "reward": r} for r in (0, 1)]
    rows += [{"prompt": chat("B"), "response": "x", "reward": r} for r in (0, 1)]
    log = read_rollout_log(write_lines(tmp_path / "log.jsonl", rows))
    data = write_lines(tmp_path / "d.jsonl", [{"messages": chat("A"), "answer": "1"}])
    pairing = pair_with_prompts(log, load_prompts(data))
    assert pairing.indices == [0, 0, -1, -1]


def test_another_answer_in_the_log_is_said(tmp_path: Path) -> None:
    write_verl(tmp_path / "log", samples())
    changed = [Task(t.question, "0" if n == 0 else t.gold, {}) for n, t in enumerate(TASKS)]
    pool = paired(read_rollout_log(tmp_path / "log"), write_data(tmp_path / "d.jsonl", changed))
    assert any("another answer in the log" in note for note in pool.notes)


def test_two_system_messages_are_both_learned(tmp_path: Path, data: Path) -> None:
    write_verl(tmp_path / "log", samples())
    path = tmp_path / "log" / "2.jsonl"
    path.write_text(path.read_text().replace("You are helpful.", "Answer briefly."))
    pool = paired(read_rollout_log(tmp_path / "log"), data)
    assert statistics(pool) == STATISTICS
    assert any("2 different templates" in note for note in pool.notes)
    assert "Answer briefly." not in rendered(samples()[0])


def numbered(steps: list[list[str]]) -> list[dict[str, Any]]:
    """Rows whose ids begin again at every step, with a right and a wrong response each."""
    return [
        {"id": place, "step": step, "prompt": text, "response": str(r), "reward": r}
        for step, texts in enumerate(steps)
        for place, text in enumerate(texts)
        for r in (0, 1)
    ]


def test_an_id_does_not_join_questions_that_differ(tmp_path: Path) -> None:
    rows = numbered([["Why?", "Where to?"], ["Who?", "Where  to?"]])
    rows += [{"prompt": None, "response": "x", "reward": 1, "step": 0}] * 3
    log = read_rollout_log(write_lines(tmp_path / "log.jsonl", rows))
    alone = pair_with_log(log)
    assert alone.indices == [0, 0, 1, 1, 2, 2, 1, 1, -1, -1, -1]
    assert any("1 id with several questions" in note for note in alone.notes)
    assert any("3 responses without a question or an id" in note for note in alone.notes)


@pytest.mark.parametrize(
    "around", ["{}", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"]
)
def test_a_question_counts_more_than_the_id_of_another_row(around: str, tmp_path: Path) -> None:
    questions = ["How many ducks swim?", "How far is Rome?", "Is it late?"]
    rows = [{"id": str(n), "question": q, "answer": "1"} for n, q in enumerate(questions)]
    logged = numbered([[around.format(q) for q in reversed(questions)]])
    pairing = pair_with_prompts(
        read_rollout_log(write_lines(tmp_path / "log.jsonl", logged)),
        load_prompts(write_lines(tmp_path / "d.jsonl", rows)),
    )
    assert pairing.indices == [2, 2, 1, 1, 0, 0]
    assert any("2 prompts with the id of one row" in note for note in pairing.notes)


def test_ids_alone_find_rows_whose_text_the_log_does_not_have(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"Q{n}?", "answer": "1"} for n in range(2)]
    logged = [{"id": n, "response": "x", "reward": r} for n in (1, 0) for r in (0, 1)]
    log = read_rollout_log(write_lines(tmp_path / "log.jsonl", logged))
    data = load_prompts(write_lines(tmp_path / "d.jsonl", rows))
    assert pair_with_prompts(log, data).indices == [1, 1, 0, 0]


def test_half_a_step_is_no_step(tmp_path: Path) -> None:
    rows = [{"prompt": "A", "response": "x", "reward": 1, "step": s} for s in (2.0, 2.5, 1e400)]
    log = read_rollout_log(write_lines(tmp_path / "log.jsonl", rows))
    assert [response.step for response in log.responses] == [2, None, None]


USERS_FORMAT = """
import sys
from cropi.exchange.imports.logged import LoggedResponse

class Mine:
    def recognises(self, row):
        RECOGNISES
        return "asked" in row

    def responses(self, rows, file):
        for number, row in rows:
            file.where(number)
            yield RESPONSE
"""
SOUND = "LoggedResponse(row['asked'], 'a text', 1.0)"


@pytest.mark.parametrize(("recognises", "response", "message"), [
    ("sys.exit(3)", SOUND, r"recognises raised SystemExit: 3 \(line 7 of .*mine.py\)"),
    ("pass", "sys.exit(3)", r"responses raised SystemExit: 3 \(line 13 of .*mine.py\)"),
    ("pass", "1 / 0", "responses raised ZeroDivisionError"),
    ("pass", "row['gone']", "log.jsonl row 1 does not follow its format .*KeyError: 'gone'"),
    ("pass", "{'text': 'a'}", "responses gave {'text': 'a'}, a dict; it must yield LoggedRes"),
    ("pass", "LoggedResponse(row['asked'], None, 1.0)", "a response whose text is None"),
    ("pass", "LoggedResponse(row['asked'], 'a', 'good')", "gave the reward 'good'"),
    ("pass", "LoggedResponse(row['asked'], 'a', float('inf'))", "gave the reward inf"),
])  # fmt: skip
def test_a_format_of_the_users_that_misbehaves_is_named(
    tmp_path: Path, recognises: str, response: str, message: str
) -> None:
    file, log = tmp_path / "mine.py", tmp_path / "log.jsonl"
    code = USERS_FORMAT.replace("RECOGNISES", recognises).replace("RESPONSE", response)
    file.write_text(code)
    log.write_text('{"asked": "2+2"}\n')
    with pytest.raises(InputError, match=message):
        read_rollout_log(log, f"{file}:Mine")


def test_a_format_of_the_users_is_read(tmp_path: Path) -> None:
    file, log = tmp_path / "mine.py", tmp_path / "log.jsonl"
    file.write_text(USERS_FORMAT.replace("RECOGNISES", "pass").replace("RESPONSE", SOUND))
    log.write_text('{"asked": "2+2"}\n')
    assert [each.text for each in read_rollout_log(log, f"{file}:Mine").responses] == ["a text"]
