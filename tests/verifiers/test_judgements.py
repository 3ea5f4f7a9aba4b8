"""Built-in verifiers give the rewards that a person would, for every kind of answer."""

import json
from pathlib import Path

import pytest

from cropi.schema import Prompt
from cropi.verifiers import Judge, choice, exact, numeric
from cropi.verifiers.math import MathVerifier
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Verifier
from support.judgements import CHOICE, EXACT, MATH, NUMERIC

VERIFIERS: dict[str, tuple[Verifier, dict[str, list[tuple[str, str, int]]]]] = {
    "math": (MathVerifier(), MATH),
    "numeric": (numeric.NumericVerifier(), NUMERIC),
    "choice": (choice.ChoiceVerifier(), CHOICE),
    "exact": (exact.ExactVerifier(), EXACT),
}
JUDGED_BY_HAND = [
    json.loads(line)
    for line in Path(__file__).with_name("judgements.jsonl").read_text("utf-8").splitlines()
]
"""Pairs of answer and response that were judged before the verifiers saw them."""


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in VERIFIERS.items() for kind in kinds]
)
def test_every_judgement_is_the_one_a_person_would_make(name: str, kind: str) -> None:
    verifier, kinds = VERIFIERS[name]
    wrong = {}
    for gold, response, reward in kinds[kind]:
        given = verifier(Prompt("p", gold, "s", prompt="q"), response)
        if given != reward:
            wrong[gold, response] = given
    assert wrong == {}


@pytest.mark.parametrize("name", VERIFIERS)
def test_pairs_judged_by_hand_beforehand_are_judged_alike(name: str) -> None:
    verifier, _ = VERIFIERS[name]
    wrong = [
        (pair["answer"], pair["response"])
        for pair in JUDGED_BY_HAND
        if pair["verifier"] == name
        and verifier(Prompt("p", pair["answer"], "s", prompt="q"), pair["response"])
        != pair["reward"]
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", MATH)
def test_every_gold_answer_reads_as_itself(kind: str) -> None:
    verifier = MathVerifier()
    for gold in dict.fromkeys(gold for gold, _, _ in MATH[kind]):
        if not gold.startswith('["'):
            assert verifier(Prompt("p", gold, "s", prompt="q"), gold) == 1.0, gold


def test_every_gold_judged_by_hand_reads_as_itself() -> None:
    verifier = MathVerifier()
    golds = dict.fromkeys(p["answer"] for p in JUDGED_BY_HAND if p["verifier"] == "math")
    texts = [gold for gold in golds if not gold.startswith('["')]
    unread = [t for t in texts if verifier(Prompt("p", t, "s", prompt="q"), t) != 1.0]
    assert unread == []


@pytest.mark.parametrize("name", ["math", "numeric", "choice"])
def test_long_and_repetitive_responses_are_judged_within_the_usual_time_limit(name: str) -> None:
    pieces = ["1 ", "it is ", "(a b ", "f(x)=", "|a", "0.12", "2 hours ", "wait, no, ", "\\text{"]
    gold = "B" if name == "choice" else "12"
    items = [(Prompt("p", gold, "s", prompt="q"), piece * 500) for piece in pieces]
    with Judge(VerifiersConfig(default=name)) as judge:
        assert {verdict.status for verdict in judge.judge(items)} == {"ok"}
