"""Invariants of the script that makes the weights."""

from __future__ import annotations

import random
from itertools import product

import pytest

from cropi.pocket.model import build_model, vocabulary
from cropi.pocket.tasks import SKILLS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cropi.pocket import pretrain  # noqa: E402


def test_loss_covers_the_answer_and_the_end_only() -> None:
    ids = vocabulary()
    inputs, labels = pretrain.encode("a3+9=", "12", width=10)
    assert inputs == [ids[token] for token in ("a", "3", "+", "9", "=", "1", "2", "<eos>")] + [0, 0]
    assert labels == [-100] * 5 + [ids["1"], ids["2"], ids["<eos>"]] + [-100] * 2


@pytest.fixture(scope="module")
def examples() -> pretrain.Examples:
    with pytest.MonkeyPatch.context() as patch:  # the full split takes seconds to encode
        patch.setattr(pretrain, "available", lambda split, skill: 200)
        return pretrain.load_examples()


def test_examples_follow_the_mixture(examples: pretrain.Examples) -> None:
    assert set(pretrain.MIXTURE) == set(SKILLS)
    first = examples.input_ids[:, 0]
    share = examples.weights[first == vocabulary()["a"]].sum().item()
    assert share == pytest.approx(pretrain.MIXTURE["add"] / sum(pretrain.MIXTURE.values()))


def test_slips_keep_the_length_and_change_characters_to_their_successors() -> None:
    draw = random.Random(0)
    for answer in ("0123", "99999", "zabcz"):
        written = pretrain.with_slips("sort", answer, draw)
        assert len(written) == len(answer)
        assert all(
            new in (old, pretrain.successor(old)) for old, new in zip(answer, written, strict=True)
        )
    assert [pretrain.successor(character) for character in "09az"] == ["1", "0", "b", "a"]


def test_skills_without_hard_facts_have_no_slips() -> None:
    draw = random.Random(0)
    plain = set(SKILLS) - set(pretrain.HARD_FACTS)
    assert all(pretrain.with_slips(skill, "1234567890", draw) == "1234567890" for skill in plain)


@pytest.mark.parametrize("skill", ["copy", "reverse"])
def test_the_share_of_hard_facts_is_the_declared_one(skill: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    rates = [pretrain.slip_rate(skill, *pair) for pair in product(letters, letters)]
    hard = sum(rate > 0.5 for rate in rates) / len(rates)
    assert hard == pytest.approx(pretrain.HARD_FACTS[skill], abs=0.03)
    assert all(rate == pretrain.EASY_SLIP_RATE or 0.55 <= rate <= 0.75 for rate in rates)


def test_learning_rate_warms_up_then_falls() -> None:
    rates = [pretrain.learning_rate(step, 500) for step in range(500)]
    peak = rates.index(max(rates))
    assert 0 < peak <= pretrain.WARMUP_STEPS
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1 * rates[peak]


def test_the_same_seed_gives_the_same_model(examples: pretrain.Examples) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        model = build_model()
        pretrain.fit(model, examples, steps=2)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
