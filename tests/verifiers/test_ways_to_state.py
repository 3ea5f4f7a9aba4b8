"""A verdict follows what is stated, not how: equal forms are right and others wrong."""

import pytest

from cropi.schema import Prompt
from cropi.verifiers.choice import ChoiceVerifier
from cropi.verifiers.math import MathVerifier
from cropi.verifiers.verdict import Verifier

MATH, CHOICE = MathVerifier(), ChoiceVerifier()
FORMS: dict[str, tuple[Verifier, tuple[str, ...], tuple[str, ...]]] = {
    "42": (MATH, ("42", "42.0", "$6 \\cdot 7$"), ("-42", "43", "420", "24")),
    "-\\frac{2}{3}": (MATH, ("-2/3", "$\\frac{-2}{3}$"), ("2/3", "$-\\frac{3}{2}$", "-0.6")),
    "35\\%": (MATH, ("35%", "35 percent", "0.35"), ("3.5%", "53%", "-35%")),
    "\\$18.90": (MATH, ("$18.90", "USD 18.90", "1890 cents"), ("$189", "18.90 cents", "€18.90")),
    "12\\text{ cm}": (MATH, ("12 cm", "120 mm", "12"), ("12 m", "13 cm", "$12\\text{ cm}^2$")),
    "3:4": (MATH, ("3:4", "3 : 4"), ("4:3", "3:5")),
    "\\{1, 2, 3\\}": (MATH, ("$\\{3, 1, 2\\}$", "1, 2 and 3"), ("$\\{1, 2\\}$", "1, 2 and 4")),
    "(3, -2)": (MATH, ("(3, -2)", "(3.0, -2)"), ("(-2, 3)", "(3, 2)", "(3, -2, 0)")),
    "(2, 5]": (MATH, ("(2, 5]", "$2 < x \\le 5$", "$x \\in (2, 5]$"), ("[2, 5)", "(2, 6]")),
    "x^2 - 4": (MATH, ("$(x-2)(x+2)$", "$x^2-4$"), ("$(x-2)^2$", "$4-x^2$")),
    "y = 2x + 1": (MATH, ("$y = 2x+1$", "$2x - y + 1 = 0$"), ("$y = 2x - 1$", "$x = 2y + 1$")),
    "2\\sqrt{3}": (MATH, ("$2\\sqrt{3}$", "$\\sqrt{12}$"), ("$3\\sqrt{2}$", "$\\sqrt{3}$")),
    "3\\ln 2": (MATH, ("$3\\ln 2$", "$\\ln 8$", "3ln(2)"), ("$2\\ln 3$", "$\\ln 6$")),
    "Tuesday": (MATH, ("Tuesday", "tuesday"), ("Thursday", "Monday")),
    "B": (CHOICE, ("B", "(B)"), ("A", "(C)")),
    "A, C": (CHOICE, ("A and C", "A, C"), ("A", "A and B", "A, B and C")),
}  # fmt: skip
STATED = (
    "@", "Answer: @", "**Answer: @**", "The answer is @.", "The answer is *@*.", "So it is @.",
    "**Conclusion:** The answer is @.", "Result: @", "We use the facts.\n\n### Answer\n@",
    "| Part | Value |\n|---|---|\n| Result | @ |", "<answer>@</answer>", "```\n@\n```", "#### @",
    "<think>Is it 9? No.</think>\n\n**Final Answer:** @", "Die Antwort ist @.", "答案是@。",
    "The answer is @, because nothing else fits.", "The answer is @ (as shown above).",
    "@ is the answer.", "Answer: `@`", "Final Answer → @",
    "$$\n\\text{Answer: } @\n$$",
    "So it is @.\n\nI checked it twice.", "The answer is 9. Wait, that's wrong. The answer is @.",
    "A week has 7 days. So it is @.", "So it is @. All 4 conditions are satisfied.",
)  # fmt: skip
NOT_STATED = (
    "The answer is not @.", "We can rule out @.", "I doubt that the answer is @.",
    "@ is wrong.", "It might be @.", "The answer isn't @.", "Is the answer @?",
    "<think>The answer is @.</think>", "The answer is @. Wait, that is wrong.",
)  # fmt: skip


def judged(answer: str, form: str, setting: str) -> float:
    return FORMS[answer][0](Prompt("p", answer, "s", prompt="q"), setting.replace("@", form))


@pytest.mark.parametrize("setting", STATED)
def test_an_equal_form_is_right_and_another_wrong_in_every_setting(setting: str) -> None:
    assert {(a, f): judged(a, f, setting) for a, (_, equal, _) in FORMS.items() for f in equal} == {
        (a, f): 1.0 for a, (_, equal, _) in FORMS.items() for f in equal
    }
    assert not [
        (a, f) for a, (_, _, others) in FORMS.items() for f in others if judged(a, f, setting)
    ]


@pytest.mark.parametrize("setting", STATED)
def test_what_replaces_another_answer_is_the_statement(setting: str) -> None:
    for answer, (_, equal, others) in FORMS.items():
        for first, last, reward in ((others[0], equal[0], 1.0), (equal[0], others[0], 0.0)):
            text = (
                setting.replace("@", first) + f"\n\nWait, I made a mistake. The answer is {last}."
            )
            if "<" not in setting:
                assert judged(answer, "", text) == reward, (answer, text)
    assert judged("42", "-42", "The answer is 42, no, wait, @.") == 0.0
    assert judged("B", "A", "The answer is B, no, wait, @.") == 0.0
    assert judged("42", "43", "The answer is not 42 but @.") == 0.0
    assert judged("42", "42", "The answer is not 43 but @.") == 1.0


@pytest.mark.parametrize("setting", NOT_STATED)
def test_what_is_denied_doubted_or_taken_back_is_no_answer(setting: str) -> None:
    assert not [
        (a, f) for a, (_, equal, _) in FORMS.items() for f in equal if judged(a, f, setting)
    ]
