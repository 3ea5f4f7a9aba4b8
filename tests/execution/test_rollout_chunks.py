"""Chunks of a rollout collection are work units like any other: same bytes wherever they run.

Engine, tokenizer and judge compute nothing and load no torch, so that workers start fast. (A
pickled model's log-probs differ in their last bits, which depend on where its weights lie.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cropi.execution import Executor, Inline, Processes
from cropi.execution.on_ray import RayWorkers
from cropi.policy.reference import PolicyRef
from cropi.rollouts.collect import SamplingPlan, collect
from cropi.rollouts.engines.engine import Completion
from cropi.schema import PolicyIdentity, Prompt, Sampling
from cropi.store.files import file_hash
from cropi.verifiers.verdict import Verdict

PROMPTS = [Prompt(f"id {n}", "3", "exact", prompt="x" * (n % 3 + 1)) for n in range(7)]


class Characters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


class FakePolicy(PolicyRef):
    """A policy of which only the tokenizer and the identity are ever asked for."""

    tokenizer = Characters()
    identity = PolicyIdentity("fake")

    def __init__(self) -> None:
        super().__init__("fake")


class Drawing:
    """An engine that draws letters from the seed."""

    context = 100

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        draws = np.random.default_rng([seed, *map(len, prompt_ids)])

        def completion() -> Completion:
            ids = draws.integers(97, 123, sampling.max_new_tokens).astype(np.int32)
            return Completion(ids, -draws.random(len(ids)).astype(np.float32), "length")

        return [[completion() for _ in range(n)] for _ in prompt_ids]


class Vowels:
    """A judge that rewards the first letter, and may fail at short prompts."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        if self.fails and len(items[0][0].prompt or "") == 1:
            raise ValueError("no verdict")
        return [Verdict(float(text[0] in "aeiou"), "ok") for _, text in items]


def collected(out: Path, executor: Executor | None = None, fails: bool = False) -> Path:
    return collect(
        Drawing(),
        FakePolicy(),
        PROMPTS,
        Vowels(fails),
        SamplingPlan(Sampling(max_new_tokens=5), responses=4, seed=5, chunk_prompts=2),
        out,
        "inputs 1",
        executor=executor,
    )


@pytest.fixture
def inline(tmp_path: Path) -> str:
    return file_hash(collected(tmp_path / "inline.parquet"))


def test_workers_give_the_same_bytes_as_this_process(tmp_path: Path, inline: str) -> None:
    assert file_hash(collected(tmp_path / "r.parquet", Processes(2, 1))) == inline


def test_workers_of_ray_give_the_same_bytes_as_this_process(tmp_path: Path, inline: str) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    assert file_hash(collected(tmp_path / "r.parquet", RayWorkers(2))) == inline
    ray.shutdown()


@pytest.mark.parametrize("executor", [Inline(), Processes(2, 1)], ids=["inline", "processes"])
def test_a_chunk_that_fails_is_raised_and_what_is_missing_is_made_later(
    tmp_path: Path, inline: str, executor: Executor
) -> None:
    out = tmp_path / "r.parquet"
    with pytest.raises(ValueError, match="no verdict"):
        collected(out, executor, fails=True)
    assert not out.exists()
    assert file_hash(collected(out)) == inline
