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

LONG = 20_000
PIECES = (
    "1 ", "it is ", "(a b ", "f(x)=", "|a", "0.12", "2 hours ", "wait, no, ", "\\text{", "$$ ",
    "$1$ 2 ", "\\( ", "\\boxed{", "\\boxed{1} ", "(", "{", "−", "1,000", "_", "not ", "C ", "*",
    "a", ". ", "1 and ", "\n", "the answer is not ", "Question:\n", "But this fails. ", "\x00",
    "答案是", '{"answer": ', '{"a": [', "\n\nNote: ", "😊", "a😊", "1 and a half ", "1 base ",
    "1 \\in ", "k, \\in \\mathbb{Z}", "\\dot3", "|x - ",
)  # fmt: skip
ENORMOUS = (
    "9^{9^{9^9}}", "10^{10^{10}}", "1e999999999", "1000000!", "2^{1000000}", "\\tan(10^{50})",
    "\\binom{1000000000}{500000000}", "1/0", "\\frac{0}{0}", "\\infty - \\infty", "((10!)!)!",
    "10!!",
    "\\sum_{k=1}^{1000000000} k", "\\prod_{k=1}^{1000000000} k", "x^{" * 40 + "x" + "}" * 40,
)  # fmt: skip
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
    gold = Prompt("p", "B" if name == "choice" else "12", "s", prompt="q")
    texts = [piece * (LONG // len(piece)) + ending for piece in PIECES for ending in ("", " 7.")]
    with Judge(VerifiersConfig(default=name)) as judge:
        verdicts = judge.judge([(gold, text) for text in texts])
    assert {(text[:10], v.status, v.reward) for text, v in zip(texts, verdicts, strict=True)} == {
        (text[:10], "ok", 0.0) for text in texts
    }


@pytest.mark.parametrize("name", ["math", "numeric"])
def test_numbers_and_formulas_that_no_machine_can_evaluate_are_no_answers(name: str) -> None:
    boxed = [*ENORMOUS, "{" * 5000 + "12" + "}" * 5000, "(" * 3000 + "12" + ")" * 3000]
    texts = [f"\\boxed{{{each}}}" for each in boxed] + ["9" * 10**6, "\\boxed{" * 20_000]
    items = [(Prompt("p", "12", "s", prompt="q"), text) for text in texts]
    with Judge(VerifiersConfig(default=name)) as judge:
        verdicts = judge.judge(items)
    outcomes = {
        (text[:30], v.status, v.reward) for (_, text), v in zip(items, verdicts, strict=True)
    }
    assert outcomes == {(text[:30], "ok", 0.0) for text in texts}
