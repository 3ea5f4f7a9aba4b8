"""Stored responses judged again: only verdicts change, and every change is told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import cropi
from cropi.errors import InputError
from cropi.rollouts import read_rollouts, read_side_columns, write_rollouts
from cropi.schema import Prompt, Response, RolloutGroup
from cropi.store.files import read_table, write_table
from cropi.verifiers.settings import VerifiersConfig
from support.command_line import Command

PROMPTS = [Prompt("a", "12", "s", prompt="q"), Prompt("b", "Paris", "s", prompt="q")]


def response(text: str, reward: float, status: str = "ok") -> Response:
    ids = np.array([1, 2], dtype=np.int32)
    logprobs = np.array([-0.5, -0.25], dtype=np.float32)
    return Response(ids, logprobs, text, "stop", reward, status)  # type: ignore[arg-type]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    groups = [
        RolloutGroup("a", np.array([5], np.int32), [response("12", 0), response("13", 0)]),
        RolloutGroup(
            "b",
            np.array([6], np.int32),
            [response("Paris", 1), response("London", float("nan"), "timeout")],
        ),
    ]
    file = tmp_path / "rollouts.parquet"
    write_rollouts(file, groups)
    return file


def test_only_rewards_and_statuses_change_and_each_change_is_listed(
    stored: Path, tmp_path: Path
) -> None:
    judged = cropi.judge(stored, PROMPTS, tmp_path / "out.parquet", verifier="math")
    before, after = read_table(stored), read_table(tmp_path / "out.parquet")
    for name in before.column_names:
        if name not in ("reward", "reward_status"):
            assert before[name].equals(after[name]), name
    assert after["reward"].to_pylist() == [1, 0, 1, 0]
    changes = [(c.prompt_id, c.response_index) for c in judged.changed]
    assert changes == [("a", 0), ("b", 1)]
    assert judged.changed[1].before.reward_status == "timeout"


def test_columns_of_other_tools_are_kept_and_a_file_can_be_replaced(stored: Path) -> None:
    table = read_table(stored)
    write_table(stored, table.append_column("note", pa.array(["w", "x", "y", "z"])))
    cropi.judge(stored, PROMPTS, stored, verifier="math")
    side = read_side_columns(stored)
    assert side is not None
    assert side["note"].to_pylist() == ["w", "x", "y", "z"]
    assert [r.reward for g in read_rollouts(stored) for r in g.responses] == [1, 0, 1, 0]


def test_rollouts_of_unknown_prompts_are_refused_before_anything_is_written(
    stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"1 of 2 prompts .* not among the 1 prompts.*'b'"):
        cropi.judge(stored, PROMPTS[:1], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_unreadable_answers_are_refused_or_dropped_as_the_settings_say(stored: Path) -> None:
    prompts = [PROMPTS[0], Prompt("b", "?!", "s", prompt="q")]
    with pytest.raises(InputError, match="1 of 2 answers cannot be read"):
        cropi.judge(stored, prompts)
    judged = cropi.judge(stored, prompts, verifier=VerifiersConfig(unreadable="drop"))
    assert judged.dropped == ["b"]
    assert [group.prompt_id for group in judged.groups] == ["a"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "pool.jsonl"
    file.write_text(
        '{"prompt_id": "a", "prompt": "q", "answer": "12"}\n'
        '{"prompt_id": "b", "prompt": "q", "answer": "Paris"}\n'
    )
    return file


def test_the_command_shows_what_changed(
    cropi: Command, stored: Path, pool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    outcome = cropi("judge", str(stored), "--prompts", str(pool), "--out", str(out))
    outcome.done()
    assert "4 responses, 2 changed" in outcome.out
    assert "timeout" in outcome.out
    assert out.exists()


def test_the_command_says_how_many_responses_were_not_judged_and_why(
    cropi: Command, stored: Path, pool: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text(
        "def f(data_source, solution_str, ground_truth):\n"
        "    if solution_str == 'London':\n"
        "        raise KeyError('no such town')\n"
        "    return 1.0\n"
    )
    out, verifier = str(tmp_path / "out.parquet"), f"{tmp_path}/f.py:f"
    outcome = cropi(
        "judge", str(stored), "--prompts", str(pool), "--out", out, "--verifier", verifier
    )
    outcome.done()
    assert "1 of 4 responses were not judged: 1 error: KeyError: 'no such town'" in outcome.out


def test_verifying_labels_a_sample_and_reads_the_corrections(
    cropi: Command, stored: Path, pool: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    shown = cropi(
        "verify", str(pool), "--responses", str(stored), "--label", str(labels), "--sample", "3"
    )
    shown.done()
    assert 'words "paris"' in shown.out
    assert "number 12" in shown.out
    assert labels.read_text().count("\n") == 4
    compared = cropi("verify", "--labels", str(labels))
    compared.done()
    assert "100.0%" in compared.out


def test_a_table_that_may_hold_corrections_is_never_written_over(
    cropi: Command, stored: Path, pool: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("corrected by hand")
    options = ("--responses", str(stored), "--label", str(labels))
    cropi("verify", str(pool), *options).refused("may hold labels")
    assert labels.read_text() == "corrected by hand"


def test_verifying_lists_every_answer_that_cannot_be_read(cropi: Command, pool: Path) -> None:
    outcome = cropi("verify", str(pool), "--verifier", "choice")
    outcome.done()
    assert "2 answers cannot be read" in outcome.out
    assert outcome.out.count("is not a letter") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give a file of prompts"),
        (["p.jsonl", "--label", "x.csv"], "give --responses too"),
        (["p.jsonl", "--labels", "x.csv"], "remove the prompts"),
    ],
)
def test_options_without_effect_are_refused(cropi: Command, options: list[str], words: str) -> None:
    cropi("verify", *options).refused(words)
