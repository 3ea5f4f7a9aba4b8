"""A collection loses nothing: not to a kill, not to a judge that fails, not to reordering."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.policy.loading import Policy, load_policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts.collect import SamplingPlan, collect, rollout
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.rollout_file import read_rollouts
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.rollouts.transformers_engine import TransformersEngine
from cropi.schema import PolicyIdentity, Prompt, Sampling
from cropi.store.files import file_hash, table_metadata
from cropi.store.files import read_table as read_parquet
from cropi.verifiers.verdict import Verdict

TEXTS = ["a1+2=", "c:", "s321=", "b12-9=", "x1*2=", "m1,2=", "g1?2="]
SAMPLING = Sampling(temperature=1.2, max_new_tokens=6)


def prompts() -> list[Prompt]:
    return [Prompt(f"id {text}", "3", "exact", prompt=text) for text in TEXTS]


class LengthJudge:
    """Rewards by the text alone; what starts with a digit times out."""

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        assert token_ids is not None
        assert len(token_ids) == len(items)
        return [
            Verdict(0.0, "timeout") if text[:1].isdigit() else Verdict(len(text) / 8, "ok")
            for _, text in items
        ]


@dataclass
class FailingJudge(LengthJudge):
    """Fails at one of its calls."""

    fails_at: int
    calls: int = 0

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        self.calls += 1
        if self.calls == self.fails_at + 1:
            raise ValueError("no verdict")
        return super().judge(items, token_ids)


@dataclass
class Watched:
    """An engine that counts its calls and is killed before the one numbered `dies_at`."""

    engine: TransformersEngine
    dies_at: int = 1000
    calls: list[int] = field(default_factory=list)

    @property
    def context(self) -> int:
        return self.engine.context

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(len(prompt_ids))
        return self.engine.generate(prompt_ids, sampling, n, seed)


def run(policy: Policy, out: Path, engine: Any = None, seed: int = 5, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "engine": engine or TransformersEngine(policy, 8),
        "policy": PolicyRef.of(replace(policy, identity=PolicyIdentity("tiny", "r1", 2))),
        "prompts": prompts(),
        "judge": LengthJudge(),
        "plan": SamplingPlan(SAMPLING, 4, seed, chunk_prompts=2),
        "out": out,
        "inputs_fingerprint": "inputs 1",
    }
    return collect(**{**arguments, **changes})


def test_killed_after_chunk_two_and_resumed_gives_the_same_bytes(
    policy: Policy, tmp_path: Path
) -> None:
    whole = run(policy, tmp_path / "whole.parquet")
    out = tmp_path / "killed.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(policy, out, Watched(TransformersEngine(policy, 8), dies_at=2))
    assert not out.exists()
    engine = Watched(TransformersEngine(policy, 8))
    run(policy, out, engine)
    assert engine.calls == [2, 1], "two of four chunks were already there"
    assert file_hash(out) == file_hash(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.parquet", "whole.parquet"]


def test_groups_keep_the_prompts_order_with_all_that_was_sampled(
    policy: Policy, tmp_path: Path
) -> None:
    out = run(policy, tmp_path / "r.parquet")
    groups = read_rollouts(out)
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts()]
    for group, text in zip(groups, TEXTS, strict=True):
        assert group.prompt_ids.tolist() == policy.tokenizer(text)["input_ids"]
        assert (group.sampling, group.seed) == (SAMPLING, 5)
        assert group.policy == PolicyIdentity("tiny", "r1", 2)
        assert len(group.responses) == 4
        for response in group.responses:
            decoded = policy.tokenizer.decode(response.ids, skip_special_tokens=True)
            assert response.text == decoded
            assert (response.reward_status == "timeout") == decoded[:1].isdigit()
            assert np.isnan(response.reward) == (response.reward_status == "timeout")
    assert table_metadata(read_parquet(out))["cropi.inputs_fingerprint"] == "inputs 1"


def test_a_finished_file_is_kept_and_one_made_from_something_else_is_replaced(
    policy: Policy, tmp_path: Path
) -> None:
    out = run(policy, tmp_path / "r.parquet")
    engine = Watched(TransformersEngine(policy, 8))
    run(policy, out, engine)
    assert engine.calls == []
    run(policy, out, engine, inputs_fingerprint="inputs 2", seed=6)
    assert engine.calls == [2, 2, 2, 1]


def test_a_chunk_that_fails_is_raised_and_those_before_it_are_kept(
    policy: Policy, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    judge = FailingJudge(fails_at=2)
    with pytest.raises(ValueError, match="no verdict"):
        run(policy, out, judge=judge)
    assert judge.calls == 3, "chunks after the one that failed are not sampled"
    engine = Watched(TransformersEngine(policy, 8))
    progress: list[tuple[int, int]] = []
    run(policy, out, engine, progress=lambda done, total: progress.append((done, total)))
    assert engine.calls == [2, 1]
    assert progress == [(4, 7), (6, 7), (7, 7)]


def test_a_chunk_in_the_place_of_another_is_sampled_again(policy: Policy, tmp_path: Path) -> None:
    whole = run(policy, tmp_path / "whole.parquet")
    out = tmp_path / "swapped.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(policy, out, Watched(TransformersEngine(policy, 8), dies_at=2))
    parts = tmp_path / "swapped.parquet.parts"
    shutil.copy(parts / "000001.parquet", parts / "000000.parquet")
    run(policy, out)
    assert file_hash(out) == file_hash(whole)


def test_parts_made_from_something_else_are_not_used(policy: Policy, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(
            policy,
            out,
            Watched(TransformersEngine(policy, 8), dies_at=2),
            seed=1,
            inputs_fingerprint="old",
        )
    engine = Watched(TransformersEngine(policy, 8))
    run(policy, out, engine)
    assert engine.calls == [2, 2, 2, 1]
    assert file_hash(out) == file_hash(run(policy, tmp_path / "fresh.parquet"))


def test_progress_counts_prompts_and_includes_what_was_there(
    policy: Policy, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    run(policy, tmp_path / "r.parquet", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_bad_prompts_and_paths_are_refused_before_anything_is_sampled(
    policy: Policy, tmp_path: Path
) -> None:
    engine = Watched(TransformersEngine(policy, 8))
    long = [Prompt("long", "", "exact", prompt="1" * 43)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompts": long}, "prompt long has 43 tokens, .* context of 48"),
        ({"prompts": prompts()[:2] * 2}, "appears twice"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": [Prompt("blank", "", "exact", prompt="")]}, "prompt blank has no tokens"),
    ]
    for changes, message in cases:
        with pytest.raises(InputError, match=message):
            run(policy, tmp_path / "r.parquet", engine, **changes)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run(policy, blocked / "r.parquet", engine)
    assert engine.calls == []


class ServedEngine:
    """An engine that samples elsewhere: it reads of the policy what needs no weights."""

    def __init__(self, policy: PolicyRef) -> None:
        self.policy = policy

    @property
    def context(self) -> int:
        return self.policy.context

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        end = self.policy.eos_token_ids[0]
        ids, logprobs = np.array([5, end], np.int32), np.array([-1.0, -2.0], np.float32)
        return [[Completion(ids, logprobs, "stop")] * n for _ in prompt_ids]


def test_a_changed_verifier_of_the_users_own_judges_again(policy: Policy, tmp_path: Path) -> None:
    file, settings = tmp_path / "own.py", RolloutsConfig(responses=2, max_new_tokens=4)
    for reward in (0.0, 1.0):
        code = f"def grade(solution_str, ground_truth):\n    return {reward}\n"
        file.write_text(code)
        place, verifier = tmp_path / "r.parquet", f"{file}:grade"
        groups = rollout(policy, prompts(), place, settings, verifier=verifier)
        assert {float(r) for group in groups for r in group.rewards} == {reward}


def test_an_engine_without_weights_in_this_process_loads_none(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("qwen2")
    identity = load_policy(path).identity

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    served = ModuleType("served")
    served.Engine = ServedEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "served", served)
    monkeypatch.setattr("cropi.policy.checkpoints.AutoModelForCausalLM.from_pretrained", forbidden)
    engine = EngineChoice.of("served:Engine")
    settings = RolloutsConfig(engine=engine, responses=2, max_new_tokens=4)
    groups = rollout(path, prompts(), tmp_path / "r.parquet", settings, verifier="exact")
    assert {group.policy for group in groups} == {replace(identity, name="qwen2")}
    assert [len(group.responses) for group in groups] == [2] * len(TEXTS)
