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
from cropi.verifiers.verdict import Job, NotApplicableError, Verifier

SIGNATURES = (
    "TRL's f(prompts, completions, **columns) -> list[float], verl's "
    "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float or its "
    "compute_scores(data_sources, solution_strs, ground_truths, extra_infos) -> list[float]"
)


def find_verifier(name: str, tags: Tags = DEFAULT_TAGS) -> Verifier:
    """Return the verifier of a resolved name; what importing a user's module raises comes through.

    Raises InputError if the function is not there or has no known signature.
    """
    target = find_plugin("verifier", name)
    if not is_built_in("verifier", name):
        return user_verifier(name, target)
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
    """Calls a user's function in verl's signature for one response."""

    def __init__(self, spec: str, function: Callable[..., Any]) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters
        self._takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._names = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if len(_SIGNATURES.keys() & self._names) != 1 or inspect.isclass(function):
            raise InputError(
                f"verifier {spec!r} has the parameters ({', '.join(parameters)}), but a reward "
                f"function is {SIGNATURES}; rename its parameters"
            )

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the function's reward.

        Raises TypeError if the result is not a number, and whatever the function raises.
        """
        return as_number(_score(self._result(_verl_arguments(prompt, completion))))

    def _result(self, arguments: Mapping[str, Any]) -> Any:
        """Call with the arguments that the function takes, and await the result if it is async."""
        accepted = {k: v for k, v in arguments.items() if self._takes_any_name or k in self._names}
        result = self._function(**accepted)
        return _awaited(result) if inspect.isawaitable(result) else result


class UserGroupVerifier(UserVerifier):
    """Calls a user's function in a signature of lists with all responses of a group."""

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the reward of a response that is alone in its group."""
        (reward,) = self.judge_group(Job((), prompt, (completion,)))
        if isinstance(reward, Exception):
            raise reward
        return reward

    def judge_group(self, job: Job) -> list[float | Exception]:
        """Return the function's rewards, or why a response has none.

        Raises TypeError if the result is not a list with one reward per response, and whatever the
        function raises.
        """
        arguments = self._arguments(job)
        return [_number_or_error(r) for r in _one_each(self._result(arguments), job)]

    def _arguments(self, job: Job) -> dict[str, Any]:
        raise NotImplementedError


class TrlVerifier(UserGroupVerifier):
    """Calls a function as TRL does: lists of prompts, completions, their ids, and columns."""

    def _arguments(self, job: Job) -> dict[str, Any]:
        """Return what TRL passes. Without token ids that argument is left out."""
        prompt, count = job.prompt, len(job.completions)
        columns = dict.fromkeys(job.absent) | {"prompt_id": prompt.prompt_id, **prompt.extra}
        columns |= {"answer": prompt.answer, "source": prompt.source}
        arguments: dict[str, Any] = {name: [value] * count for name, value in columns.items()}
        arguments |= _trl_texts(prompt, job.completions)
        if job.token_ids is not None:
            arguments["completion_ids"] = [list(ids) for ids in job.token_ids]
        state = SimpleNamespace(global_step=job.step)
        return arguments | {"trainer_state": state, "log_extra": _ignore, "log_metric": _ignore}


class VerlBatchVerifier(UserGroupVerifier):
    """Calls a function as verl's batch reward manager does, with lists of what it has for each."""

    def _arguments(self, job: Job) -> dict[str, Any]:
        single = [_verl_arguments(job.prompt, completion) for completion in job.completions]
        plural = {"extra_info": "extra_infos"}
        return {plural.get(name, f"{name}s"): [s[name] for s in single] for name in single[0]}


_SIGNATURES: dict[str, type[UserVerifier]] = {
    "completions": TrlVerifier,
    "solution_str": UserVerifier,
    "solution_strs": VerlBatchVerifier,
}
"""Which verifier calls a function with such a parameter."""


def user_verifier(spec: str, function: Callable[..., Any]) -> UserVerifier:
    """Return the verifier that calls a user's function.

    Raises InputError if the function has no known signature.
    """
    parameters = inspect.signature(function).parameters
    kind = next((k for name, k in _SIGNATURES.items() if name in parameters), UserVerifier)
    return kind(spec, function)


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


def _one_each(rewards: Any, job: Job) -> list[Any]:
    """Return a function's rewards, one for each response. Raises TypeError if they are not that."""
    count = len(job.completions)
    wanted = "one reward" if count == 1 else f"{count} rewards"
    if isinstance(rewards, str | bytes | Mapping) or not hasattr(rewards, "__len__"):
        raise TypeError(f"the function returned {rewards!r}, not a list with {wanted}")
    if len(rewards) != count:
        completions = "1 completion" if count == 1 else f"{count} completions"
        raise TypeError(f"the function returned {len(rewards)} rewards for {completions}")
    return list(rewards)


def _number_or_error(result: Any) -> float | Exception:
    """Return one of the rewards as a number, or why it is none."""
    try:
        return as_number(_score(result))
    except TypeError as error:
        return error


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


def _trl_texts(prompt: Prompt, completions: Sequence[str]) -> dict[str, list[Any]]:
    """Return `prompts` and `completions` as TRL passes them: messages if the prompt is a chat."""
    if prompt.messages is None:
        return {"prompts": [prompt.prompt] * len(completions), "completions": list(completions)}
    return {
        "prompts": [[dict(m) for m in prompt.messages] for _ in completions],
        "completions": [[{"role": "assistant", "content": text}] for text in completions],
    }


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
