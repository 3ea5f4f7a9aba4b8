"""Invariants of the script that makes the weights."""

from __future__ import annotations

import pytest

from cropi.pocket.model import vocabulary
from cropi.pocket.tasks import SKILLS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cropi.pocket import pretrain  # noqa: E402


def test_loss_covers_the_answer_and_the_end_only() -> None:
    ids = vocabulary()
    inputs, labels = pretrain.encode("a3+9=", "12", width=10)
    assert inputs == [ids[token] for token in ("a", "3", "+", "9", "=", "1", "2", "<eos>")] + [0, 0]
    assert labels == [-100] * 5 + [ids["1"], ids["2"], ids["<eos>"]] + [-100] * 2


def test_examples_follow_the_mixture() -> None:
    examples = pretrain.load_examples()
    assert set(pretrain.MIXTURE) == set(SKILLS)
    first = examples.input_ids[:, 0]
    share = examples.weights[first == vocabulary()["a"]].sum().item()
    assert share == pytest.approx(pretrain.MIXTURE["add"] / sum(pretrain.MIXTURE.values()))


def test_learning_rate_warms_up_then_falls() -> None:
    rates = [pretrain.learning_rate(step, 500) for step in range(500)]
    peak = rates.index(max(rates))
    assert 0 < peak <= pretrain.WARMUP_STEPS
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1 * rates[peak]


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (pretrain.train(steps=2, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
