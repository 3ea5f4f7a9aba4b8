"""The built-in verifiers accept every usual way to write a right answer, and no wrong one."""

import pytest

from cropi.errors import InputError
from cropi.prompts.sources import load_task
from cropi.schema import Prompt
from cropi.verifiers import choice, exact, numeric
from cropi.verifiers.math import MathVerifier
from cropi.verifiers.reasoning_gym import ReasoningGymVerifier


def asked(answer: str) -> Prompt:
    return Prompt("p", answer, "s", prompt="q")


math_verifier = MathVerifier()


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("72", "She has \\boxed{72} apples."),
        ("#### 72", "so the answer is 72."),
        ("72", "Adding up:\n#### 72"),
        ("$\\frac{1}{2}$", "The answer is $0.5$"),
        ("\\dfrac{1}{2}", "\\boxed{\\frac12}"),
        ("\\frac{1}{2}", "1/2"),
        ("3\\sqrt{2}", "\\boxed{\\sqrt{18}}"),
        ("x^2+1", "$1+x^2$"),
        ("x^2+1", "1+x^2"),
        ("(1,2)", "The point is $(1, 2)$."),
        ("1,000", "1000"),
        ("\\text{Evelyn}", "The winner is \\boxed{\\text{Evelyn}}."),
        ("Paris", "The answer is Paris."),
        ("18 dollars", "She pays $18$ dollars"),
    ],
)
def test_math_accepts_equivalent_answers(gold: str, completion: str) -> None:
    assert math_verifier(asked(gold), completion) == 1.0


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("72", "The answer is 71."),
        ("72", "I do not know."),
        ("72", ""),
        ("3", "3\\sqrt{2}"),
        ("3\\sqrt{2}", "\\boxed{3}"),
        ("Paris", "The answer is pairs."),
        ("\\frac{1}{2}", "\\boxed{"),
        ("x>3", "\\boxed{5}"),
    ],
)
def test_math_rejects_other_answers_without_an_error(gold: str, completion: str) -> None:
    assert math_verifier(asked(gold), completion) == 0.0


@pytest.mark.parametrize("gold", ["", "???"])
def test_math_refuses_an_answer_it_cannot_read(gold: str) -> None:
    with pytest.raises(ValueError, match="cannot read the answer"):
        math_verifier(asked(gold), "72")


@pytest.mark.parametrize(
    ("gold", "completion", "reward"),
    [
        ("1234.5", "It is $1,234.50.", 1),
        ("0.5", "so 1/2", 1),
        ("0.5", "\\frac{1}{2} of it", 1),
        ("50%", "0.5", 1),
        ("50", "50 %", 1),
        ("50%", "0.5%", 0),
        ("-4", "5 - 9 = -4.", 1),
        ("4", "the range 1-4", 1),
        ("7", "\\boxed{7} after 3 steps", 1),
        ("1e-3", ".001", 1),
        ("-3", "\u22123", 1),
        ("3", "no number", 0),
        ("3", "1/0", 0),
        ("12", "123", 0),
        ("0.3333333333", "1/3", 1),
    ],
)
def test_numeric_reads_the_last_number_in_any_notation(
    gold: str, completion: str, reward: float
) -> None:
    assert numeric.NumericVerifier()(asked(gold), completion) == reward


@pytest.mark.parametrize(
    ("gold", "completion", "reward"),
    [
        ("C", "\\boxed{C}", 1),
        ("(B)", "The answer is (B).", 1),
        ("b", "B", 1),
        ("D", "**Answer: D**", 1),
        ("C", "<answer>c</answer>", 1),
        ("A", "A plan: B is wrong, so the answer is A.", 1),
        ("B", "A long thought. I choose B", 1),
        ("C", "(A) is wrong, (B) too: (C)", 1),
        ("C", "It is\nC.", 1),
        ("E", "\\boxed{\\text{E}}", 1),
        ("A", "A cat sat there.", 0),
        ("A", "The answer is B, not A", 0),
        ("A", "", 0),
    ],
)
def test_choice_finds_the_letter(gold: str, completion: str, reward: float) -> None:
    assert choice.ChoiceVerifier()(asked(gold), completion) == reward


def test_choice_and_numeric_refuse_answers_of_another_kind() -> None:
    with pytest.raises(ValueError, match="not a letter"):
        choice.ChoiceVerifier()(asked("Paris"), "A")
    with pytest.raises(ValueError, match="no number"):
        numeric.NumericVerifier()(asked("Paris"), "1")


def test_exact_ignores_outer_whitespace_only() -> None:
    assert exact.ExactVerifier()(asked("a b"), " a b\n") == 1.0
    assert exact.ExactVerifier()(asked("a b"), "a  b") == 0.0


@pytest.mark.parametrize("task", ["basic_arithmetic", "arc_agi", "rubiks_cube"])
def test_reasoning_gym_scores_by_the_entry_that_made_the_prompt(task: str) -> None:
    pytest.importorskip("reasoning_gym")
    (row,) = load_task(task, 1, 5, {})
    verifier = ReasoningGymVerifier()
    prompt = Prompt("p", row.get("answer", "any"), task, prompt="q", extra=row["extra"])
    if "answer" in row:
        assert verifier(prompt, f"I think <answer>{row['answer']}</answer>") == 1.0
        assert verifier(prompt, row["answer"]) == 1.0
    assert verifier(prompt, "no idea") < 0.1


def test_reasoning_gym_refuses_other_prompts_and_unknown_tasks() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="no reasoning-gym entry"):
        ReasoningGymVerifier()(asked("1"), "1")
    with pytest.raises(InputError, match="did you mean basic_arithmetic"):
        load_task("basic_arithmetics", 1, 0, {})
    with pytest.raises(InputError, match="no_such_option"):
        load_task("basic_arithmetic", 1, 0, {"no_such_option": 1})
