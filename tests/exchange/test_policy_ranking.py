"""Influence from a trainer's log is that of the rollouts themselves, as far as the log has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cropi
from cropi.config import InfluenceConfig, ObjectiveConfig
from cropi.errors import InputError
from cropi.exchange.imports.pairing import pair_with_log, pair_with_prompts
from cropi.exchange.imports.rollout_folder import read_rollout_log
from cropi.exchange.ranking.logged_groups import LoggedGroups, logged_groups
from cropi.exchange.ranking.policy_ranking import RECOMPUTED, WITHOUT_RATIOS, measure_pool
from cropi.exchange.ranking.ranking import LoggedPool, logged_pool
from cropi.pocket import rows
from cropi.policy.reference import PolicyRef
from cropi.prompts import load_prompts
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt, RolloutGroup
from cropi.selection.settings import SelectionConfig
from support.command_line import Command, in_process
from support.trainer_logs import Sample, lm_eval_row, write_lines

SAMPLING = RolloutsConfig(responses=6, max_new_tokens=16)


@pytest.fixture(scope="module")
def policy() -> PolicyRef:
    return PolicyRef("pocket", device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions of each skill, as rows of a trainer's data."""
    questions = [{k: row[k] for k in ("prompt", "answer")} for row in rows("pool", None, 2, 0)]
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", questions)


@pytest.fixture(scope="module")
def prompts(data: Path) -> list[Prompt]:
    return load_prompts(data)


@pytest.fixture(scope="module")
def groups(
    policy: PolicyRef, prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> list[RolloutGroup]:
    out = tmp_path_factory.mktemp("rollouts") / "pool.parquet"
    return cropi.rollout(policy, prompts, out, SAMPLING, verifier="exact")


def gym(prompt: Prompt, group: RolloutGroup) -> list[dict[str, Any]]:
    """A group as NeMo Gym logs it, with ids and log-probs."""
    return [
        {
            "responses_create_params": {"input": [{"role": "user", "content": prompt.prompt}]},
            "response": {
                "output": [
                    {
                        "type": "message",
                        "content": [{"type": "output_text", "text": r.text}],
                        "prompt_token_ids": group.prompt_ids.tolist(),
                        "generation_token_ids": r.ids.tolist(),
                        "generation_log_probs": r.logprobs.tolist(),
                    }
                ]
            },
            "reward": r.reward,
            "expected_answer": prompt.answer,
            "_ng_task_index": 0,
        }
        for r in group.responses
    ]


def text(prompt: Prompt, group: RolloutGroup) -> list[dict[str, Any]]:
    """A group as texts alone."""
    return [
        {
            "prompt": prompt.prompt,
            "answer": prompt.answer,
            "response": r.text,
            "reward": r.reward,
            "finish_reason": r.finish_reason,
        }
        for r in group.responses
    ]


Writer = Callable[[Prompt, RolloutGroup], list[dict[str, Any]]]


def logged(
    path: Path, writer: Writer, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup]
) -> LoggedPool:
    pairs = zip(prompts, groups, strict=True)
    write_lines(path, [row for pair in pairs for row in writer(*pair)])
    log = read_rollout_log(path)
    return logged_pool(log, pair_with_prompts(log, list(prompts)), None)


def influence(
    pool: LoggedPool, made: LoggedGroups, policy: PolicyRef, behaviour: PolicyRef | None = None
) -> tuple[dict[str, float], list[str]]:
    target = replace(made, groups=made.groups[::2], notes=[])
    settings = (SelectionConfig(strategy="ranking"), InfluenceConfig(batch_tokens=512))
    measured = measure_pool(pool, made, {"t": target}, policy, *settings, behaviour=behaviour)
    assert measured.estimate is not None
    means = measured.estimate.mean["t"].tolist()
    return dict(zip(measured.estimate.prompt_ids, means, strict=True)), measured.notes


def expected(groups: Sequence[RolloutGroup], policy: PolicyRef, ratio: Any) -> dict[str, float]:
    settings = InfluenceConfig(batch_tokens=512, objective=ObjectiveConfig(ratio=ratio))
    scored = cropi.score(policy.load(), groups, {"t": groups[::2]}, settings).estimate
    return dict(zip(scored.prompt_ids, scored.mean["t"].tolist(), strict=True))


def assert_same(first: dict[str, float], second: dict[str, float], tolerance: float) -> None:
    assert first.keys() == second.keys()
    assert sum(not math.isnan(value) for value in first.values()) > 5
    for name, value in first.items():
        assert value == pytest.approx(second[name], abs=tolerance, nan_ok=True)


def test_logged_ids_and_logprobs_give_the_influence_of_the_rollouts(
    tmp_path: Path, policy: PolicyRef, prompts: list[Prompt], groups: list[RolloutGroup]
) -> None:
    pool = logged(tmp_path / "log.jsonl", gym, prompts, groups)
    made = logged_groups(pool, policy, 1.0)
    assert made.with_logprobs
    assert all(group.exact for group in made.groups)
    means, notes = influence(pool, made, policy)
    assert_same(means, expected(groups, policy, "token"), 0.0)
    assert WITHOUT_RATIOS not in notes


def test_texts_alone_are_tokenised_again_and_have_no_ratios(
    tmp_path: Path, policy: PolicyRef, prompts: list[Prompt], groups: list[RolloutGroup]
) -> None:
    pool = logged(tmp_path / "log.jsonl", text, prompts, groups)
    made = logged_groups(pool, policy, 1.0)
    assert not made.with_logprobs
    assert not any(group.exact for group in made.groups)
    for group, original in zip(made.groups, groups, strict=True):
        assert group.prompt_ids.tolist() == original.prompt_ids.tolist()
        for response, sampled in zip(group.responses, original.responses, strict=True):
            assert response.ids.tolist() == sampled.ids.tolist()
    assert any("tokenised again" in note for note in made.notes)
    means, notes = influence(pool, made, policy)
    assert_same(means, expected(groups, policy, "none"), 0.0)
    assert WITHOUT_RATIOS in notes


def test_the_policy_that_sampled_recomputes_its_logprobs(
    tmp_path: Path, policy: PolicyRef, prompts: list[Prompt], groups: list[RolloutGroup]
) -> None:
    pool = logged(tmp_path / "log.jsonl", text, prompts, groups)
    means, notes = influence(pool, logged_groups(pool, policy, 1.0), policy, policy)
    assert_same(means, expected(groups, policy, "token"), 1e-4)
    assert RECOMPUTED in notes


def test_ids_of_another_tokenizer_are_refused(
    tmp_path: Path, policy: PolicyRef, prompts: list[Prompt], groups: list[RolloutGroup]
) -> None:
    def shifted(prompt: Prompt, group: RolloutGroup) -> list[dict[str, Any]]:
        wrong = [replace(r, ids=(r.ids + 7) % 60) for r in group.responses]
        return gym(prompt, replace(group, responses=wrong))

    pool = logged(tmp_path / "log.jsonl", shifted, prompts, groups)
    with pytest.raises(InputError, match="not of the policy's tokenizer"):
        logged_groups(pool, policy, 1.0)


def test_conversations_without_ids_leave_their_group_and_are_counted(
    tmp_path: Path, policy: PolicyRef, prompts: list[Prompt], groups: list[RolloutGroup]
) -> None:
    turns = [{"role": "assistant", "content": "1"}, {"role": "tool", "content": "2"},
             {"role": "assistant", "content": "3"}]  # fmt: skip

    def with_tools(prompt: Prompt, group: RolloutGroup) -> list[dict[str, Any]]:
        written = text(prompt, group)
        written[0]["response"] = turns
        return written

    pool = logged(tmp_path / "log.jsonl", with_tools, prompts, groups)
    made = logged_groups(pool, policy, 1.0)
    assert all(len(group.usable) == SAMPLING.responses - 1 for group in made.groups)
    assert f"{len(groups)} responses whose text is not all" in " ".join(made.notes)


def test_greedy_responses_have_the_temperature_that_is_given(
    tmp_path: Path, policy: PolicyRef
) -> None:
    row = lm_eval_row(Sample("a1+1=", "2", "2", 1.0, step=1, group=1, place=0))
    (call,) = row["arguments"].values()
    call["arg_1"] = {"temperature": 0}
    log = read_rollout_log(write_lines(tmp_path / "1.jsonl", [row]))
    made = logged_groups(logged_pool(log, pair_with_log(log), None), policy, 0.5)
    assert [group.sampling.temperature for group in made.groups] == [0.5]
    assert "1 response sampled greedily, taken as sampled at temperature 0.5" in made.notes


def test_prompts_without_their_templates_marks_are_not_tokenised(
    tmp_path: Path, policy: PolicyRef
) -> None:
    rows = [{"input": "user\n1+1=\nassistant\n", "output": "2", "score": r, "gts": "2", "step": 1}
            for r in (0, 1)]  # fmt: skip
    log = read_rollout_log(write_lines(tmp_path / "1.jsonl", rows))
    pool = logged_pool(log, pair_with_log(log), None)
    with pytest.raises(InputError, match=r"--prompts, or rank without gradients"):
        logged_groups(pool, policy, 1.0)


def test_the_command_samples_its_target_and_ranks_by_influence(
    tmp_path: Path,
    data: Path,
    prompts: list[Prompt],
    groups: list[RolloutGroup],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call: Command = in_process(monkeypatch, capsys)
    logged(tmp_path / "log.jsonl", text, prompts, groups)
    out = tmp_path / "ranked"
    common = ("rank", "--rollouts", tmp_path / "log.jsonl", "--prompts", data, "--out", out)
    sampling = ("--verifier", "exact", "--max-new-tokens", 16, "--responses", 6)
    call(*common, "--policy", "pocket").refused("--like")
    call(*common, "--like", data).refused("without --policy")
    like = ("--policy", "pocket", "--like", f"own={data}", "--ratio", 0.2)
    outcome = call(*common, *sampling, *like, "strategy={name: ranking, noise_floor: 0}")
    outcome.done()
    table = pq.read_table(out / "ranked.parquet")
    means = np.array(table["own"].to_pylist(), dtype=float)
    assert (out / "targets" / "own.parquet").exists()
    ranks = table["rank"].to_pylist()
    scored = [m for m, rank in zip(means, ranks, strict=True) if rank is not None]
    assert scored == sorted(scored, reverse=True)
    assert ranks[0] == 1
    assert table["selected"].to_pylist()[0]
    assert "pocket" in (out / "report.html").read_text()


def test_a_target_may_be_rollouts_and_any_strategy_can_choose(
    tmp_path: Path,
    data: Path,
    prompts: list[Prompt],
    groups: list[RolloutGroup],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call: Command = in_process(monkeypatch, capsys)
    logged(tmp_path / "log.jsonl", gym, prompts[:-2], groups[:-2])
    logged(tmp_path / "like.jsonl", gym, prompts[::2], groups[::2])
    outcome = call("rank", "--rollouts", tmp_path / "log.jsonl", "--prompts", data, "--no-chat",
                   "--policy", "pocket", "--like", tmp_path / "like.jsonl", "--ratio", 0.25,
                   "--strategy", "cropi", "--out", tmp_path / "ranked")  # fmt: skip
    outcome.done()
    assert "2 prompts of the pool have no response" in outcome.out
    sampled = groups[:-2]
    idle = len(sampled) - sum(group.informative for group in sampled)
    assert f"{idle} of the {len(sampled)} with responses have no gradient now" in outcome.out
    table = pq.read_table(tmp_path / "ranked" / "ranked.parquet")
    assert len(table) == len(prompts)
    assert {"like"} <= set(table.column_names)
    assert sum(table["selected"].to_pylist()) == len(prompts) // 4
