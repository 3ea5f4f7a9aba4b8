"""User functions in TRL's and verl's signature get what those trainers would give them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropi.config import RewardTerm, VerifiersConfig
from cropi.errors import InputError
from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.user import UserVerifier

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
    return UserVerifier("here:f", function)


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

    assert verifier(f).judge_tokens(TEXT, "4", (5, 6, 7)) == 3
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


def test_trl_functions_find_a_step_in_the_trainer_state() -> None:
    def f(completions: Any, trainer_state: Any) -> list[float]:
        return [float(trainer_state.global_step)]

    assert verifier(f)(TEXT, "4") == 0.0


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
        "def silent(prompts, completions, **columns):\n    return [None]\n\n"
        "def half(prompts, completions, **columns):\n    return [0.5]\n"
    )
    (tmp_path / "r.py").write_text(code)
    both = [RewardTerm(function=f"{tmp_path}/r.py:{name}") for name in ("silent", "half")]
    prompt = Prompt("p", "1", "s", prompt="q")
    with Judge(VerifiersConfig(default=both)) as judge:
        assert judge.judge([(prompt, "x")])[0].reward == 0.5
    with Judge(VerifiersConfig(default=both[:1])) as judge:
        assert judge.judge([(prompt, "x")])[0].status == "error"
