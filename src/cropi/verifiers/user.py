"""The user's reward function, in TRL's or verl's signature, recognised by its parameters.

TRL:  `f(prompts, completions, completion_ids, **columns) -> list[float | None]`
verl: `compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict`
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cropi.errors import InputError
from cropi.plugins import find_plugin, is_built_in
from cropi.schema import Prompt
from cropi.verifiers.verdict import NotApplicableError, Verifier

SIGNATURES = (
    "TRL's f(prompts, completions, **columns) -> list[float] or verl's "
    "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float"
)


def find_verifier(name: str) -> Verifier:
    """Return the verifier of a resolved name; what importing a user's module raises comes through.

    Raises InputError if the function is not there or has no known signature.
    """
    target = find_plugin("verifier", name)
    if not is_built_in("verifier", name):
        return UserVerifier(name, target)
    verifier = target() if isinstance(target, type) else target
    assert isinstance(verifier, Verifier)
    return verifier


class UserVerifier:
    """Calls a user's function as the trainer it was written for would."""

    def __init__(self, spec: str, function: Callable[..., Any]) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters
        self._takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._names = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        is_trl, is_verl = "completions" in self._names, "solution_str" in self._names
        if is_trl == is_verl or inspect.isclass(function):
            raise InputError(
                f"verifier {spec!r} has the parameters ({', '.join(parameters)}), but a reward "
                f"function is {SIGNATURES}; rename its parameters"
            )
        self._call = self._call_trl if is_trl else self._call_verl

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
        rewards = self._result(arguments | _TRL_CALLBACKS)
        if isinstance(rewards, str | bytes | Mapping) or not hasattr(rewards, "__len__"):
            raise TypeError(f"the function returned {rewards!r}, not a list with one reward")
        if len(rewards) != 1:
            raise TypeError(f"the function returned {len(rewards)} rewards for 1 completion")
        return rewards[0]

    def _call_verl(self, prompt: Prompt, completion: str, token_ids: Sequence[int] | None) -> Any:
        reward_model = prompt.extra.get("reward_model")
        raw = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
        arguments = {
            "data_source": prompt.extra.get("data_source", prompt.source),
            "solution_str": completion,
            "ground_truth": prompt.answer if raw is None or isinstance(raw, str) else raw,
            "extra_info": prompt.extra.get("extra_info", dict(prompt.extra)),
        }
        result = self._result(arguments)
        return result.get("score") if isinstance(result, Mapping) else result

    def _result(self, arguments: Mapping[str, Any]) -> Any:
        """Call with the arguments that the function takes, and await the result if it is async."""
        accepted = {k: v for k, v in arguments.items() if self._takes_any_name or k in self._names}
        result = self._function(**accepted)
        return _awaited(result) if inspect.isawaitable(result) else result


def _awaited(result: Awaitable[Any]) -> Any:
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _ignore(*_: Any, **__: Any) -> None:
    """Replace TRL's logging callbacks: there is no trainer here to log to."""


_TRL_CALLBACKS: dict[str, Any] = {
    "trainer_state": None,
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
