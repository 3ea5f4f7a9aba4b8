"""Accuracy counts what was judged, estimates pass@k without bias, and generates once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import isnan
from typing import Any

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.evaluation.pass_at_k import EvaluationSets, best_of
from cropi.rollouts.engines.engine import Completion
from cropi.schema import Prompt, Sampling
from cropi.verifiers.verdict import Verdict


class Letters:
    """A tokenizer of code points that counts how often it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        self.encoded += 1
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(i) for i in ids)


class Echo:
    """An engine whose sample i answers the i-th character of the prompt."""

    context = 64

    def __init__(self) -> None:
        self.calls = 0

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        self.calls += 1
        one = np.zeros(1, np.float32)
        return [
            [Completion(np.array([ids[i]], np.int32), one, "stop") for i in range(n)]
            for ids in prompt_ids
        ]


class Reader:
    """Digits are rewards in tenths, t is a timeout, e an error."""

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        assert token_ids is not None
        assert len(token_ids) == len(items)
        nan = float("nan")
        outcomes = {"t": Verdict(nan, "timeout"), "e": Verdict(nan, "error", "no answer")}
        return [outcomes.get(text) or Verdict(int(text) / 9, "ok") for _, text in items]


def sets(**texts: list[str]) -> dict[str, list[Prompt]]:
    return {
        name: [Prompt(f"{name} {i}", "", "exact", prompt=text) for i, text in enumerate(group)]
        for name, group in texts.items()
    }


def run(prompts: dict[str, list[Prompt]], k: Sequence[int], **changes: Any) -> list[Any]:
    arguments: dict[str, Any] = {"samples": 4, "seed": 0, "threshold": None, **changes}
    prepared = EvaluationSets.prepare(Letters(), prompts)
    return prepared.evaluate(Echo(), Reader(), Sampling(max_new_tokens=1), k=k, **arguments)


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    for rewards in (rng.integers(0, 2, 7).astype(float), rng.random(7)):
        for k in range(1, 8):
            subsets = [max(s) for s in combinations(rewards.tolist(), k)]
            assert best_of(rewards, k) == pytest.approx(np.mean(subsets), rel=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    rewards = np.r_[np.zeros(2990), np.ones(10)]
    assert best_of(rewards, 1500) == pytest.approx(1 - 0.5**10, abs=1e-3)


def test_results_belong_to_their_sets() -> None:
    first, second = run(sets(a=["9900", "0000"], b=["9999"]), [1, 2])
    assert (first.set, first.prompts, first.tokens) == ("a", 2, 8)
    assert first.pass_at == pytest.approx({1: 0.25, 2: (1 - 1 / 6) / 2})
    assert (second.set, second.prompts, second.tokens) == ("b", 1, 4)
    assert second.pass_at == pytest.approx({1: 1.0, 2: 1.0})


def test_timeouts_and_errors_leave_the_mean_and_are_counted() -> None:
    (result,) = run(sets(a=["99te", "tttt"]), [1, 2])
    assert result.pass_at[1] == 1.0
    assert result.statuses == {"ok": 2, "timeout": 5, "error": 1}
    (nothing,) = run(sets(a=["tttt"]), [1])
    assert isnan(nothing.pass_at[1])


def test_a_prompt_with_too_few_judged_responses_leaves_pass_at_k_alone() -> None:
    (result,) = run(sets(a=["9ttt", "0000"]), [1, 2])
    assert result.pass_at == {1: 0.5, 2: 0.0}


def test_graded_rewards_are_averaged_and_a_threshold_makes_them_passes() -> None:
    (graded,) = run(sets(a=["9630"]), [1])
    assert graded.pass_at[1] == pytest.approx(0.5)
    (passed,) = run(sets(a=["9630"]), [1], threshold=0.3)
    assert passed.pass_at[1] == pytest.approx(0.75)


def test_prepared_sets_are_encoded_once_and_generated_in_one_pass() -> None:
    tokenizer, engine = Letters(), Echo()
    prepared = EvaluationSets.prepare(tokenizer, sets(a=["9999", "0000"], b=["9000"]))
    for seed in range(3):
        prepared.evaluate(engine, Reader(), Sampling(max_new_tokens=1), 4, [1], seed)
    assert (tokenizer.encoded, engine.calls) == (3, 3)


def test_impossible_evaluations_are_refused() -> None:
    for k in ([5], [0], []):
        with pytest.raises(InputError, match="from 1 to evaluation"):
            run(sets(a=["9999"]), k)
    with pytest.raises(InputError, match="evaluation set b has no prompts"):
        run(sets(a=["9999"], b=[]), [1])
    with pytest.raises(InputError, match="prompt a 0 has 64 tokens"):
        run(sets(a=["9" * 64]), [1])
