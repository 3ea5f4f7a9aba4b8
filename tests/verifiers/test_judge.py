"""The judge tells right, wrong, timeout and error apart, whatever a verifier does."""

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cropi.config import RewardTerm, VerifiersConfig
from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.tags import Tags

HOSTILE = """
import ctypes, os, sys, time

def hostile(completions, answer, **columns):
    return [judged(text, gold) for text, gold in zip(completions, answer)]

def judged(text, gold):
    if text == "hang":
        time.sleep(60)
    if text == "hang in C":
        10 ** 10 ** 10
    if text == "exit":
        os._exit(3)
    if text == "sys.exit":
        sys.exit(4)
    if text == "segfault":
        ctypes.string_at(0)
    if text == "raise":
        raise KeyError("no such key")
    if text == "print":
        print("x" * 100_000)
        os.write(1, b"raw bytes on descriptor one")
    if text == "read":
        sys.stdin.read()
    return {"none": None, "nan": float("nan"), "text": "1.0"}.get(text, float(text == gold))
"""


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    file = tmp_path / "hostile.py"
    file.write_text(textwrap.dedent(HOSTILE))
    return f"{file}:hostile"


def prompt(answer: str = "1", source: str = "s", name: str = "p") -> Prompt:
    return Prompt(name, answer, source, prompt="question")


def test_one_hanging_response_is_a_timeout_and_its_neighbours_are_judged(hostile: str) -> None:
    texts = ["1", "2", "hang", "1", "hang in C", "2", "1"]
    with Judge(VerifiersConfig(default=hostile, timeout=0.4)) as judge:
        verdicts = judge.judge([(prompt(), t) for t in texts])
        statuses = [v.status for v in verdicts]
        assert statuses == ["ok", "ok", "timeout", "ok", "timeout", "ok", "ok"]
        assert [v.reward for v in verdicts if v.status == "ok"] == [1, 0, 1, 0, 1]
        assert math.isnan(verdicts[2].reward)
        assert verdicts[2].detail == "no reward within 0.4 s (more with verifiers.timeout)"
        assert judge.counts == {"s": {"ok": 3, "wrong": 2, "timeout": 2}}


def test_a_crash_is_an_error_with_its_reason_and_never_a_reward(hostile: str) -> None:
    reasons = {
        "exit": "exited with code 3",
        "sys.exit": "SystemExit: 4",
        "segfault": "SIGSEGV",
        "raise": "KeyError: 'no such key'",
        "none": "returned None",
        "nan": "not a finite number",
        "text": "returned '1.0'",
    }
    with Judge(VerifiersConfig(default=hostile, timeout=5)) as judge:
        verdicts = judge.judge([(prompt(), t) for k in reasons for t in (k, "1")])
    for verdict, reason in zip(verdicts[::2], reasons.values(), strict=True):
        assert verdict.status == "error"
        assert math.isnan(verdict.reward)
        assert reason in verdict.detail
    assert all(v.reward == 1 and v.status == "ok" for v in verdicts[1::2])


def test_prints_and_reads_of_user_code_do_not_touch_the_pipe(hostile: str) -> None:
    with Judge(VerifiersConfig(default=hostile, timeout=5)) as judge:
        verdicts = judge.judge([(prompt(t), t) for t in ("print", "read", "1")])
    assert [v.reward for v in verdicts] == [1, 1, 1]


def test_a_worker_that_dies_between_two_calls_costs_no_verdict(hostile: str) -> None:
    with Judge(VerifiersConfig(default=hostile, timeout=5)) as judge:
        judge.check([prompt()])
        worker = judge._pool._workers[0]
        os.kill(worker._process.pid, signal.SIGKILL)
        assert worker.ready(3)  # its pipe has closed
        assert [v.status for v in judge.judge([(prompt(), "1")] * 2)] == ["ok", "ok"]


GREEDY = """
kept = []

def greedy(completions, **columns):
    if "much" in completions:
        kept.append(bytes(3 * 2**30))
    if "leak" in completions:
        while True:
            kept.append(bytes(2**28))
    return [float(text == "1") for text in completions]
"""


def test_a_grader_without_enough_memory_is_a_crashed_judgement_and_the_next_ones_are_judged(
    tmp_path: Path,
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    spec, texts = f"{tmp_path}/greedy.py:greedy", ["1", "much", "2", "leak", "1"]
    with Judge(VerifiersConfig(default=spec, memory_gb=2)) as judge:
        verdicts = judge.judge([(prompt(), text) for text in texts])
    assert [v.status for v in verdicts] == ["ok", "error", "ok", "error", "ok"]
    assert [v.reward for v in verdicts if v.status == "ok"] == [1, 0, 1]
    assert all("verifiers.memory_gb=2" in v.detail for v in verdicts if v.status == "error")


PICKLE = """
import glob, os, pickle, struct

class Harmful:
    def __reduce__(self):
        return os.mkdir, (HERE,)

def write_to_all_pipes(completions, **columns):
    body = pickle.dumps(Harmful())
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, struct.pack(">Q", len(body)) + body)
        except OSError:
            pass
    return [1.0]
"""


def test_bytes_that_user_code_writes_to_the_pipe_are_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made by the judge"
    (tmp_path / "harmful.py").write_text(f"HERE = {str(target)!r}\n{PICKLE}")
    spec = f"{tmp_path}/harmful.py:write_to_all_pipes"
    with Judge(VerifiersConfig(default=spec, timeout=5)) as judge:
        (verdict,) = judge.judge([(prompt(), "1")])
    assert verdict.status == "error"
    assert "wrote to cropi's pipe" in verdict.detail
    assert not target.exists()


def test_order_is_kept_over_several_workers_and_many_responses() -> None:
    items = [(prompt(str(i), name=str(i)), str(i if i % 3 else -1)) for i in range(3000)]
    with Judge(VerifiersConfig(default="exact", workers=2)) as judge:
        verdicts = judge.judge(items)
    assert [v.reward for v in verdicts] == [float(i % 3 > 0) for i in range(3000)]


def test_responses_of_any_text_and_length_arrive_whole() -> None:
    texts = ["", "\u2028 \x00 \ud800", "x" * 3_000_000]
    with Judge(VerifiersConfig(default="exact")) as judge:
        assert [v.reward for v in judge.judge([(prompt(t), t) for t in texts])] == [1, 1, 1]
        assert judge.judge([]) == []


def test_a_weighted_sum_fails_as_a_whole_if_one_term_fails(hostile: str) -> None:
    terms = [RewardTerm(function="exact", weight=0.5), RewardTerm(function=hostile, weight=2.0)]
    with Judge(VerifiersConfig(default=terms, timeout=5)) as judge:
        good, bad = judge.judge([(prompt(), "1"), (prompt(), "raise")])
    assert (good.reward, good.status) == (2.5, "ok")
    assert bad.status == "error"
    assert "hostile" in bad.detail


def test_the_first_matching_pattern_picks_the_verifier_and_brackets_are_plain() -> None:
    sources = {"gsm[8k]": "numeric", "gsm*": "exact", "?": "choice"}
    with Judge(VerifiersConfig(sources=sources)) as judge:
        picked = [judge.rewards_of(s)[0][0] for s in ("gsm[8k]", "gsm8", "x", "other")]
    assert picked == ["numeric", "exact", "choice", "math"]


def test_a_copy_in_another_process_counts_for_itself_and_says_so_once() -> None:
    with Judge(VerifiersConfig(default="exact")) as judge:
        judge.judge([(prompt(), "1")])
        assert judge.tally() is None
        with pickle.loads(pickle.dumps(judge)) as copy:
            copy.judge([(prompt(), "2"), (prompt(answer=""), "3")])
            tally = copy.tally()
            judge.add(tally.counts, tally.reasons)
            assert not copy.tally().counts
        assert sum(judge.counts["s"].values()) == 3
        assert judge.counts["s"]["ok"] == 1


def test_the_threshold_decides_what_counts_as_wrong() -> None:
    with Judge(VerifiersConfig(default="exact", threshold=1.5)) as judge:
        judge.judge([(prompt(), "1")])
        assert judge.counts["s"] == {"wrong": 1}


def test_the_check_names_source_function_and_error(hostile: str) -> None:
    config = VerifiersConfig(default="exact", sources={"bad": hostile}, timeout=0.5)
    with Judge(config) as judge:
        judge.check([prompt(), prompt("fine", "bad")])
        with pytest.raises(InputError, match=r"'bad'.*hostile.*no such key"):
            judge.check([prompt(), prompt("raise", "bad")])
        with pytest.raises(InputError, match=r"'bad'.*hostile.*within 0.5 s"):
            judge.check([prompt("hang", "bad")])
    with (
        Judge(VerifiersConfig(default="numeric")) as judge,
        pytest.raises(InputError, match="has no number"),
    ):
        judge.check([prompt("Paris")])


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ("2 + 2 = 4\n#### 4", r"give it '4' alone with `answer_regex: '#### \(\.\+\)'`"),
        (r"so \boxed{4}", "give it '4' alone with `answer_regex`"),
        ("four", "division.*; fix it or the answer"),
    ],
)
def test_a_function_that_cannot_take_a_worked_solution_is_to_be_given_its_result(
    answer: str, advice: str, tmp_path: Path
) -> None:
    code = """
def f(completions, answer, **columns):
    if answer[0] != "4":
        raise ValueError("division")
    return [1.0]
"""
    (tmp_path / "f.py").write_text(code)
    with (
        Judge(VerifiersConfig(default=f"{tmp_path}/f.py:f")) as judge,
        pytest.raises(InputError, match=advice),
    ):
        judge.check([prompt(answer)])


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("import nowhere_to_be_found", "f", "nowhere_to_be_found"),
        ("def g(completions): pass", "f", "it has g"),
        ("def f(response, gold): pass", "f", "solution_str"),
        ("import os; os._exit(7)", "f", "exited with code 7"),
        ("def f(:", "f", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_the_users_error(
    tmp_path: Path, code: str, name: str, message: str
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(code)
    with (
        Judge(VerifiersConfig(default=f"{file}:{name}")) as judge,
        pytest.raises(InputError, match=message) as caught,
    ):
        judge.check([prompt()])
    assert "rewards.py" in str(caught.value)


def test_unknown_names_and_missing_files_are_refused_before_any_process(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'numeric'"):
        Judge(VerifiersConfig(default="numerc"))
    with pytest.raises(InputError, match=r"gone\.py"):
        Judge(VerifiersConfig(default="gone.py:f"), tmp_path)
    with pytest.raises(InputError, match="empty"):
        Judge(VerifiersConfig(default=[]))


def test_files_are_found_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("BONUS = 3")
    (tmp_path / "rewards.py").write_text(
        "from helper import BONUS\ndef f(completions, **columns): return [BONUS] * len(completions)"
    )
    with Judge(VerifiersConfig(default="rewards.py:f"), tmp_path) as judge:
        assert judge.judge([(prompt(), "x")])[0].reward == 3
    with Judge(VerifiersConfig(default="rewards:f"), tmp_path) as judge:
        assert judge.judge([(prompt(), "x")])[0].reward == 3


def test_the_worker_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(
        "import sys\ndef f(completions, **columns):\n"
        "    return [sum(m in sys.modules for m in ('torch', 'transformers', 'pyarrow'))]"
    )
    terms = [RewardTerm(function="math", weight=0.0), RewardTerm(function=f"{tmp_path}/spy.py:f")]
    with Judge(VerifiersConfig(default=terms)) as judge:
        assert judge.judge([(prompt(), "1")])[0].reward == 0


SCRIPT = """
import sys
from cropi.config import VerifiersConfig
from cropi.schema import Prompt
from cropi.verifiers import Judge
judge = Judge(VerifiersConfig(default=sys.argv[1], timeout=30))
judge.judge([(Prompt("p", "1", "s", prompt="q"), "1")])
print(judge._pool._workers[0]._process.pid, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leave", "wait"])
def test_no_worker_outlives_its_parent_even_in_a_script_without_main_guard(
    tmp_path: Path, hostile: str, end: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, script, hostile, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    if end == "wait":
        parent.send_signal(signal.SIGKILL)
    parent.communicate()
    _wait_for_end(worker)


def _wait_for_end(pid: int) -> None:
    limit = time.monotonic() + 3
    while _alive(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_answer_is_tried_and_the_unreadable_ones_are_listed_or_dropped() -> None:
    rows = [prompt("12", name="a"), prompt("???", name="b"), prompt("", "other", name="c")]
    with Judge(VerifiersConfig()) as judge, pytest.raises(InputError) as caught:
        judge.check(rows)
    message = str(caught.value)
    assert "2 of 3 answers" in message
    assert "source 's', prompt 'b': math cannot read the answer '???'" in message
    assert "source 'other', prompt 'c'" in message
    with Judge(VerifiersConfig(unreadable="drop")) as judge:
        assert judge.readable(rows) == rows[:1]
        with pytest.raises(InputError, match="2 of 2"):
            judge.readable(rows[1:])
    several = [prompt("7 and 8")]
    with (
        Judge(VerifiersConfig(default="numeric")) as judge,
        pytest.raises(InputError, match="several numbers"),
    ):
        judge.check(several)


@pytest.mark.parametrize(
    ("settings", "response", "reward"),
    [
        ({}, "<think>12</think>13", 0),
        ({"think_tags": ["reasoning"]}, "<reasoning>12</reasoning>13", 0),
        ({"think_tags": ["reasoning"]}, "<reasoning>\\boxed{12}", 0),
        ({"think_tags": ["[T]...[/T]"]}, "[T]13[/T]12", 1),
        ({"answer_tags": ["final"]}, "13 <final>12</final> 14", 1),
        ({}, "13 <final>12</final> 14", 0),
    ],
)
@pytest.mark.parametrize("name", ["math", "numeric"])
def test_the_tags_of_the_settings_reach_the_verifiers(
    name: str, settings: dict[str, list[str]], response: str, reward: float
) -> None:
    config = VerifiersConfig.model_validate({"default": name, **settings})
    with Judge(config) as judge:
        assert judge.judge([(prompt("12"), response)])[0].reward == reward


def test_a_tag_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a tag"):
        VerifiersConfig(think_tags=["<think>"])


def test_the_default_tags_of_settings_and_verifiers_are_the_same() -> None:
    config = VerifiersConfig()
    assert Tags() == Tags(tuple(config.think_tags), tuple(config.answer_tags))
