"""The user's reward function, in TRL's or verl's signature, recognised by its parameters.

TRL:  `f(prompts, completions, completion_ids, **columns) -> list[float | None]`
verl: `compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict`,
      or for a batch `(data_sources, solution_strs, ground_truths, extra_infos) -> list`
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial, update_wrapper
from types import SimpleNamespace
from typing import Any

from cropi.errors import InputError
from cropi.plugins import find_plugin, is_built_in
from cropi.schema import Prompt
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.verdict import NotApplicableError, Verifier

SIGNATURES = (
    "TRL's f(prompts, completions, **columns) -> list[float] or verl's "
    "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float"
)


def find_verifier(name: str, tags: Tags = DEFAULT_TAGS) -> Verifier:
    """Return the verifier of a resolved name; what importing a user's module raises comes through.

    Raises InputError if the function is not there or has no known signature.
    """
    target = find_plugin("verifier", name)
    if not is_built_in("verifier", name):
        return UserVerifier(name, target)
    options = {"tags": tags} if "tags" in inspect.signature(target).parameters else {}
    verifier = target(**options) if isinstance(target, type) else _with_options(target, options)
    assert isinstance(verifier, Verifier)
    return verifier


def _with_options(function: Any, options: Mapping[str, Any]) -> Any:
    """Return a built-in function with its options; what it has besides stays on it."""
    if not options:
        return function
    return update_wrapper(partial(function, **options), function)


class UserVerifier:
    """Calls a user's function as the trainer it was written for would."""

    def __init__(self, spec: str, function: Callable[..., Any]) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters
        self._takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._names = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        calls = {
            "completions": self._call_trl,
            "solution_str": self._call_verl,
            "solution_strs": self._call_verl_batch,
        }
        named = [name for name in calls if name in self._names]
        if len(named) != 1 or inspect.isclass(function):
            raise InputError(
                f"verifier {spec!r} has the parameters ({', '.join(parameters)}), but a reward "
                f"function is {SIGNATURES}; rename its parameters"
            )
        self._call = calls[named[0]]

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the function's reward; see `judge_tokens`."""
        return self.judge_tokens(prompt, completion, None)

    def judge_tokens(
        self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None
    ) -> float:
        """Return the function's reward.

        Raises TypeError if the result is not a number, and whatever the function raises.
        """
        return as_number(self._call(prompt, completion, token_ids))

    def _call_trl(self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None) -> Any:
        """Call with a group of one. Without token ids the argument is left out."""
        columns = {"prompt_id": prompt.prompt_id, **prompt.extra}
        columns |= {"answer": prompt.answer, "source": prompt.source}
        arguments = {name: [value] for name, value in columns.items()}
        arguments |= _trl_texts(prompt, completion)
        if token_ids is not None:
            arguments["completion_ids"] = [list(token_ids)]
        return _only(self._result(arguments | _TRL_CALLBACKS))

    def _call_verl(self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None) -> Any:
        return _score(self._result(_verl_arguments(prompt, completion)))

    def _call_verl_batch(
        self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None
    ) -> Any:
        """Call with a batch of one, as verl's batch reward manager does with many."""
        single = _verl_arguments(prompt, completion)
        plural = {"extra_info": "extra_infos"}
        arguments = {plural.get(name, f"{name}s"): [value] for name, value in single.items()}
        return _score(_only(self._result(arguments)))

    def _result(self, arguments: Mapping[str, Any]) -> Any:
        """Call with the arguments that the function takes, and await the result if it is async."""
        accepted = {k: v for k, v in arguments.items() if self._takes_any_name or k in self._names}
        result = self._function(**accepted)
        return _awaited(result) if inspect.isawaitable(result) else result


def _verl_arguments(prompt: Prompt, completion: str) -> dict[str, Any]:
    """Return what verl passes for one response."""
    reward_model = prompt.extra.get("reward_model")
    raw = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    return {
        "data_source": prompt.extra.get("data_source", prompt.source),
        "solution_str": completion,
        "ground_truth": prompt.answer if raw is None or isinstance(raw, str) else raw,
        "extra_info": prompt.extra.get("extra_info", dict(prompt.extra)),
    }


def _only(rewards: Any) -> Any:
    """Return the reward of a list with one. Raises TypeError if it is something else."""
    if isinstance(rewards, str | bytes | Mapping) or not hasattr(rewards, "__len__"):
        raise TypeError(f"the function returned {rewards!r}, not a list with one reward")
    if len(rewards) != 1:
        raise TypeError(f"the function returned {len(rewards)} rewards for 1 completion")
    return rewards[0]


def _score(result: Any) -> Any:
    """Return the reward that a verl function returned: a number, or `score` in a dict."""
    if not isinstance(result, Mapping):
        return result
    if "score" not in result:
        keys = ", ".join(map(repr, result)) or "nothing"
        raise TypeError(
            f"the function returned a dict with {keys}, but without 'score', the reward"
        )
    return result["score"]


def _awaited(result: Awaitable[Any]) -> Any:
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _ignore(*_: Any, **__: Any) -> None:
    """Replace TRL's logging callbacks: there is no trainer here to log to."""


_TRL_CALLBACKS: dict[str, Any] = {
    "trainer_state": SimpleNamespace(global_step=0),
    "log_extra": _ignore,
    "log_metric": _ignore,
}


def _trl_texts(prompt: Prompt, completion: str) -> dict[str, list[Any]]:
    """Return `prompts` and `completions` as TRL passes them: messages if the prompt is a chat."""
    if prompt.messages is None:
        return {"prompts": [prompt.prompt], "completions": [completion]}
    reply = [{"role": "assistant", "content": completion}]
    return {"prompts": [[dict(m) for m in prompt.messages]], "completions": [reply]}


def as_number(value: Any) -> float:
    """Return a reward as a float.

    Raises NotApplicableError on None, as TRL defines it, and TypeError on text and anything else
    that is not a number.
    """
    if value is None:
        raise NotApplicableError("the function returned None, not a number")
    if isinstance(value, str | bytes):
        raise TypeError(f"the function returned {value!r}, not a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"the function returned {value!r}, not a number") from None
