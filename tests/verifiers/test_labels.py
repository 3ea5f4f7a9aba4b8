"""A table of verdicts survives a spreadsheet, and its corrections count as they should."""

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.explanation import ExplainedVerdict, Explanations
from cropi.verifiers.labels import judged_again, label_agreement, read_labels, write_labels
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Decision, Verdict

JudgeOf = Callable[[str], Judge]
DANGEROUS = ["=1+1", "+1", "-1", "@cmd", "\tx", "\rx", "'quoted", "''=x", 'a,"b"\nc', "plain"]


@pytest.fixture(scope="module")
def judge_of() -> Iterator[JudgeOf]:
    """A judge by the name of its verifier, started once."""
    with ExitStack() as judges:
        yield cache(lambda name: judges.enter_context(Judge(VerifiersConfig(default=name))))


def explained(text: str, reward: float, answer: str = "1") -> ExplainedVerdict:
    decision = Decision(reward > 0, "text", text)
    prompt = Prompt("p", answer, "s", prompt="q")
    return ExplainedVerdict(prompt, 0, text, "math", Verdict(reward, "ok"), decision)


def test_no_cell_is_a_formula_and_every_text_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, [explained(text, 1.0, answer=text) for text in DANGEROUS])
    with file.open(newline="", encoding="utf-8") as handle:
        cells = [cell for row in csv.reader(handle) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    rows = read_labels(file)
    assert [row.response for row in rows] == DANGEROUS
    assert [row.prompt.answer for row in rows] == DANGEROUS
    assert all(row.reward == row.label == 1.0 for row in rows)


def relabelled(file: Path, labels: list[str]) -> None:
    with file.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": label} for row, label in zip(rows, labels, strict=True))


def test_a_table_saved_with_semicolons_is_the_same_table(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, [explained(text, 1.0, answer=text) for text in DANGEROUS])
    rows = read_labels(file)
    with file.open(newline="", encoding="utf-8") as handle:
        cells = list(csv.reader(handle))
    with file.open("w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle, delimiter=";").writerows(cells)
    assert read_labels(file) == rows


def test_corrections_are_false_positives_and_negatives(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, [explained(t, r) for t, r in (("1", 1), ("2", 1), ("3", 0), ("4", 0))])
    relabelled(file, ["yes", "0", "right", ""])
    result = label_agreement(read_labels(file))
    assert result.right == 1
    assert [row.response for row in result.false_positives] == ["2"]
    assert [row.response for row in result.false_negatives] == ["3"]
    assert result.unlabelled == 1


def test_rows_judged_again_have_the_verifiers_reward_of_today(
    judge_of: JudgeOf, tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, [explained("\\boxed{1}", 0.0), explained("2", 1.0)])
    rows = judged_again(read_labels(file), judge_of("math"))
    assert [row.reward for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize("label", ["maybe", "nan", "inf"])
def test_a_label_that_is_no_reward_is_refused_with_its_row(tmp_path: Path, label: str) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, [explained("1", 1.0)])
    relabelled(file, [label])
    with pytest.raises(InputError, match=f"row 2: label '{label}' is not a reward"):
        read_labels(file)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("answer,reward\n1,1\n")
    with pytest.raises(InputError, match="no column 'label'"):
        read_labels(file)


@pytest.mark.parametrize(
    ("verifier", "answer", "kind"),
    [
        ("math", "\\frac{1}{2}", "number 1/2"),
        ("math", "Paris", 'words "paris"'),
        ("math", "3, 4", "2 values in any order: 3; 4"),
        ("math", "(3, 4)", "2 values in order: (3; 4)"),
        ("math", "[1, \\infty)", "2 values in order: [1; \\infty)"),
        ("math", "x > 1", "interval (1, \\infty)"),
        (
            "math",
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
            "matrix of 2 rows: 1; 2 / 3; 4",
        ),
        ("math", "12 hours", "number 12 h"),
        ("math", '["12", "twelve"]', "number 12, or number 12"),
        ("numeric", "50%", "number 50%"),
        ("choice", "A, C", "letter A and C"),
        ("exact", "a b", "text 'a b'"),
    ],
)
def test_built_in_verifiers_say_what_they_read(
    judge_of: JudgeOf, verifier: str, answer: str, kind: str
) -> None:
    prompt = Prompt("p", answer, "s", prompt="q")
    (reading,) = Explanations(judge_of(verifier)).answers([prompt])
    assert reading.read_as == kind


def test_a_decision_names_statement_and_stage_and_agrees_with_the_reward(
    judge_of: JudgeOf,
) -> None:
    responses = ["<think>3</think>The answer is 1/2.", "\\boxed{0.5}", "<think>0.5", "0.7"]
    prompt = Prompt("p", "\\frac{1}{2}", "s", prompt="q")
    items = [(prompt, n, response) for n, response in enumerate(responses)]
    verdicts = Explanations(judge_of("math")).responses(items)
    decisions = [v.decision for v in verdicts if v.decision is not None]
    assert [d.statement for d in decisions] == ["1/2.", "0.5", "", "0.7"]
    assert [d.stage for d in decisions] == [
        "mathematics",
        "mathematics",
        "no statement",
        "mathematics",
    ]
    assert [float(d.right) for d in decisions] == [v.verdict.reward for v in verdicts]


def test_the_users_functions_run_in_the_workers_alone(tmp_path: Path) -> None:
    code = (
        "import os\ndef f(completions, **columns): return [float(os.getpid())] * len(completions)"
    )
    (tmp_path / "f.py").write_text(code)
    prompt = Prompt("p", "1", "s", prompt="q")
    with Judge(VerifiersConfig(default=f"{tmp_path}/f.py:f")) as judge:
        explanations = Explanations(judge)
        (verdict,) = explanations.responses([(prompt, 0, "x")])
        (reading,) = explanations.answers([prompt])
    import os

    assert verdict.decision is None
    assert verdict.verdict.reward != os.getpid()
    assert reading.read_as == "given to the function as it is"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("answer,reward,label,response\n1,1,1,it is 1, or so\n", "row 2 has 5 cells"),
        ("answer,reward,label,response\n1,1,1\n", "row 2 has 3 cells"),
        ('answer,reward,label,response\n1,1,1,"one\n', "not valid CSV"),
        ("answer,reward,label,label,response\n1,1,1,0,x\n", "column 'label' twice"),
    ],
)
def test_a_table_whose_cells_have_moved_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(file)


@pytest.mark.parametrize("index", ["9" * 5000, "\u00b2", "-1", ""])
def test_any_response_index_is_read(tmp_path: Path, index: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"response_index;answer;reward;label;response\n{index};1;1;no;x\n")
    (row,) = read_labels(file)
    assert (row.response_index, row.reward, row.label) == (0, 1.0, 0.0)
