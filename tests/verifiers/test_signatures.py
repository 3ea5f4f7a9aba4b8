"""User functions in TRL's and verl's signature get what those trainers would give them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropi.config import RewardTerm, VerifiersConfig
from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.user import UserGroupVerifier, UserVerifier, user_verifier
from cropi.verifiers.verdict import Job

TEXT = Prompt("p", "4", "sums", prompt="2+2", extra={"level": 3, "solution": "2+2=4"})
CHAT = Prompt("c", "4", "sums", messages=({"role": "user", "content": "2+2"},))
VERL = Prompt(
    "v",
    "[1, 2]",
    "gsm8k",
    messages=({"role": "user", "content": "q"},),
    extra={"reward_model": {"ground_truth": [1, 2]}, "extra_info": {"index": 7}},
)


def verifier(function: Callable[..., Any]) -> UserVerifier:
    return user_verifier("here:f", function)


def test_trl_functions_get_lists_of_one_with_every_column() -> None:
    def f(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        assert (prompts, completions) == (["2+2"], ["four"])
        assert columns["level"] == [3]
        assert columns["solution"] == ["2+2=4"]
        assert columns["answer"] == ["4"]
        columns["log_metric"]("name", 1.0)
        return [0.25]

    assert verifier(f)(TEXT, "four") == 0.25


def test_trl_functions_get_messages_for_chat_prompts() -> None:
    def f(prompts: Any, completions: Any) -> list[float]:
        assert prompts == [[{"role": "user", "content": "2+2"}]]
        return [float(completions == [[{"role": "assistant", "content": "4"}]])]

    assert verifier(f)(CHAT, "4") == 1.0


def test_token_ids_are_passed_on_and_never_invented() -> None:
    def f(completions: Any, completion_ids: Any) -> list[float]:
        return [len(ids) for ids in completion_ids]

    of_group = verifier(f)
    assert isinstance(of_group, UserGroupVerifier)
    job = Job((), TEXT, ("4", "44"), ((5, 6, 7), (8,)))
    assert of_group.judge_group(job) == [3, 1]
    with pytest.raises(TypeError, match="completion_ids"):
        verifier(f)(TEXT, "4")


def test_verl_functions_get_the_raw_ground_truth_and_extra_info() -> None:
    def compute_score(
        data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None
    ) -> dict[str, float]:
        assert (data_source, ground_truth, extra_info) == ("gsm8k", [1, 2], {"index": 7})
        return {"score": 0.5, "format": 1.0}

    assert verifier(compute_score)(VERL, "x") == 0.5


def test_verl_functions_may_take_only_some_arguments() -> None:
    def compute_score(solution_str: str, ground_truth: str, method: str = "strict") -> bool:
        return solution_str == ground_truth and method == "strict"

    assert verifier(compute_score)(TEXT, "4") == 1.0


def test_verls_batch_functions_get_lists_of_one() -> None:
    def compute_scores(
        data_sources: Any, solution_strs: Any, ground_truths: Any, extra_infos: Any
    ) -> list[dict[str, float]]:
        assert (data_sources, solution_strs) == (["gsm8k"], ["x"])
        assert (ground_truths, extra_infos) == ([[1, 2]], [{"index": 7}])
        return [{"score": 0.5}]

    assert verifier(compute_scores)(VERL, "x") == 0.5


def test_a_dict_without_a_score_is_called_what_it_is() -> None:
    with pytest.raises(TypeError, match="a dict with 'reward', but without 'score'"):
        verifier(lambda solution_str: {"reward": 1.0})(TEXT, "4")


def test_async_functions_are_awaited() -> None:
    async def f(completions: Any, **columns: Any) -> list[float]:
        return [2.0]

    assert verifier(f)(TEXT, "4") == 2.0


@pytest.mark.parametrize(
    "parameters", ["response, gold", "**anything", "completions, solution_str"]
)
def test_other_signatures_are_refused_with_both_described(parameters: str) -> None:
    function = eval(f"lambda {parameters}: 0")
    with pytest.raises(InputError, match=r"prompts, completions.*solution_str, ground_truth"):
        verifier(function)


@pytest.mark.parametrize("result", [None, 1.0, [], [1.0, 2.0], "1", {"score": 1}, [None], ["1"]])
def test_a_trl_result_that_is_not_one_number_is_an_error(result: Any) -> None:
    with pytest.raises(TypeError, match="returned"):
        verifier(lambda completions: result)(TEXT, "4")


def test_a_term_that_does_not_apply_is_left_out_of_the_sum(tmp_path: Path) -> None:
    """TRL's None means "does not apply"; there is an error only if no term applies."""
    code = (
        "def silent(prompts, completions, **columns):\n    return [None] * len(prompts)\n\n"
        "def half(prompts, completions, **columns):\n    return [0.5] * len(prompts)\n"
    )
    (tmp_path / "r.py").write_text(code)
    both = [RewardTerm(function=f"{tmp_path}/r.py:{name}") for name in ("silent", "half")]
    prompt = Prompt("p", "1", "s", prompt="q")
    with Judge(VerifiersConfig(default=both)) as judge:
        assert judge.judge([(prompt, "x")])[0].reward == 0.5
    with Judge(VerifiersConfig(default=both[:1])) as judge:
        assert judge.judge([(prompt, "x")])[0].status == "error"


def test_a_function_that_does_not_apply_to_the_first_prompt_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "def even(completions, answer, **columns):\n"
        "    return [None if int(a) % 2 else 1.0 for a in answer]\n"
    )
    prompts = [Prompt(f"p{i}", str(i), "s", prompt="q") for i in (1, 3, 2)]
    with Judge(VerifiersConfig(default=f"{tmp_path}/r.py:even")) as judge:
        judge.check(prompts)
        with pytest.raises(InputError, match="returned None"):
            judge.check(prompts[:2])


GROUPS = """
import os
import statistics
import time

def above_mean(prompts, completions, answer, level, trainer_state, **columns):
    if "hang" in completions:
        time.sleep(60)
    if "exit" in completions:
        os._exit(3)
    assert len(set(prompts)) == 1 and len(prompts) == len(answer) == len(level)
    lengths = [len(text) for text in completions]
    mean = statistics.mean(lengths)
    return [float(n > mean) + 10 * trainer_state.global_step for n in lengths]

def none_without_level(completions, level, solution, **columns):
    return [float(one is None) for one in level]

def ranks(data_sources, solution_strs, ground_truths, extra_infos):
    order = sorted(solution_strs)
    return [{"score": order.index(text)} for text in solution_strs]

def never(completions, **columns):
    raise KeyError("no such key")
"""


@pytest.fixture
def groups_file(tmp_path: Path) -> Path:
    (tmp_path / "groups.py").write_text(GROUPS)
    return tmp_path / "groups.py"


OTHER = Prompt("o", "5", "sums", prompt="2+3", extra={"level": 1})


def test_functions_in_lists_see_the_whole_group_of_a_prompt_and_no_other(groups_file: Path) -> None:
    items = [(TEXT, "a"), (TEXT, "aaaa"), (TEXT, "aa"), (OTHER, "bbbb"), (OTHER, "b")]
    with Judge(VerifiersConfig(default=f"{groups_file}:above_mean")) as judge:
        assert [v.reward for v in judge.judge(items)] == [0, 1, 0, 1, 0]
    with Judge(VerifiersConfig(default=f"{groups_file}:ranks")) as judge:
        assert [v.reward for v in judge.judge(items)] == [0, 2, 1, 1, 0]


def test_a_response_that_ends_a_groups_call_leaves_the_group_and_the_others_are_judged_together(
    groups_file: Path,
) -> None:
    texts = ["a", "exit", "aaaa", "hang", "aa"]
    with Judge(VerifiersConfig(default=f"{groups_file}:above_mean", timeout=0.5)) as judge:
        verdicts = judge.judge([(TEXT, text) for text in texts])
    assert [v.status for v in verdicts] == ["ok", "error", "ok", "timeout", "ok"]
    assert [v.reward for v in verdicts if v.status == "ok"] == [0, 1, 0]


def test_a_function_that_fails_on_every_group_gives_no_reward_and_says_why(
    groups_file: Path,
) -> None:
    with Judge(VerifiersConfig(default=f"{groups_file}:never")) as judge:
        verdicts = judge.judge([(TEXT, "a"), (TEXT, "b")])
        assert judge.reasons == {"error: KeyError: 'no such key'": 2}
    assert {v.status for v in verdicts} == {"error"}


def test_functions_find_the_trainers_step(groups_file: Path) -> None:
    with Judge(VerifiersConfig(default=f"{groups_file}:above_mean")) as judge:
        judge.step = 7
        assert [v.reward for v in judge.judge([(TEXT, "a"), (TEXT, "aaa")])] == [70, 71]


def test_a_column_that_only_other_rows_have_is_none(groups_file: Path) -> None:
    bare = Prompt("b", "5", "bare", prompt="2+3")
    with Judge(VerifiersConfig(default=f"{groups_file}:none_without_level")) as judge:
        verdicts = judge.judge([(TEXT, "a"), (bare, "a"), (OTHER, "a")])
    assert [v.reward for v in verdicts] == [0, 1, 0]
