"""Rollout engines by name; nothing of a user's is used or stored before it has been checked.

A response that no file of rollouts can hold would be stored and end every later call, whatever the
engine does by then; one of another prompt, or with log-probs that are none, would be trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from cropi.plugin_calls import PluginError, calling, is_users
from cropi.plugins import KINDS
from cropi.policy.reference import PolicyRef
from cropi.rollouts.engines.engine import Completion, RolloutEngine, StreamingEngine
from cropi.rollouts.settings import EngineChoice
from cropi.schema import EMBEDDING_ROWS, MAX_LOGPROB, FinishReason, LogprobMode, Sampling
from cropi.text import plural, shown

if TYPE_CHECKING:
    from cropi.policy.loading import Policy

TITLE = KINDS["engine"].title


def load_engine(choice: EngineChoice | str, policy: Policy | PolicyRef) -> RolloutEngine:
    """Return the chosen engine, with its settings, around `policy`; a name means the defaults.

    Raises InputError if there is none of that name.
    """
    if isinstance(choice, str):
        choice = EngineChoice.of(choice)
    reference = PolicyRef.of(policy)
    engine = cast(RolloutEngine, choice.build(reference))
    if not is_users(choice.name):
        return engine
    # Not isinstance: that would read `context`, for which the engine may need its weights.
    if callable(getattr(engine, "stream", None)):
        return CheckedStream(choice, cast(StreamingEngine, engine), reference)
    return CheckedEngine(choice, engine, reference)


@dataclass(frozen=True)
class CheckedEngine:
    """A user's engine around a policy: whatever is wrong with what it returns is a PluginError."""

    choice: EngineChoice
    engine: RolloutEngine
    policy: PolicyRef

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: another process has not loaded the file that the engine is in."""
        return load_engine, (self.choice, self.policy)

    @property
    def name(self) -> str:
        """The resolved name."""
        return self.choice.name

    @property
    def context(self) -> int:
        """How many positions the policy has."""
        with calling(TITLE, self.name, "context"):
            context: Any = self.engine.context
        if not isinstance(context, int | np.integer) or context < 1:
            raise self._error(
                "context", f"is {shown(context, 60)}", "give a whole number from 1 on"
            )
        return int(context)

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        """What the engine samples, as it is asked for: `n` sound completions a prompt, in order."""
        with calling(TITLE, self.name, "generate"):
            sampled: Any = self.engine.generate(prompt_ids, sampling, n, seed)
        groups = self._list("generate", sampled)
        if len(groups) != len(prompt_ids):
            raise self._error(
                "generate",
                f"returned groups for {len(groups)} of {plural(len(prompt_ids), 'prompt')}",
                "it must return one list of completions for each, in their order",
            )
        return [
            self._group("generate", index, group, sampling, n) for index, group in enumerate(groups)
        ]

    def _group(
        self, function: str, index: int, group: Any, sampling: Sampling, n: int
    ) -> list[Completion]:
        """The completions of the prompt at this index, in plain types."""
        completions = self._list(function, group)
        where = f"prompt {index} of the call"
        if len(completions) != n:
            raise self._error(
                function,
                f"returned {plural(len(completions), 'completion')} for {where}",
                f"give the {n} that are asked for (n)",
            )
        vocabulary = self._vocabulary
        try:
            plain = [_completion(each, sampling, vocabulary) for each in completions]
        except _UnsoundError as unsound:
            raise self._error(function, f"returned for {where} {unsound}") from None
        if len({each.logprob_mode for each in plain}) > 1:
            raise self._error(
                function, f"returned several logprob_modes for {where}", "give all the same one"
            )
        return plain

    @property
    def _vocabulary(self) -> int:
        """How many token ids the policy has."""
        tokenizer = self.policy.tokenizer
        return int(getattr(tokenizer, EMBEDDING_ROWS, None) or len(tokenizer))

    def _list(self, function: str, values: Any) -> list[Any]:
        """A list of what was returned, which may be a generator."""
        if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
            raise self._error(
                function, f"returned {shown(values, 60)}", "it must return a list of lists"
            )
        with calling(TITLE, self.name, function):
            return list(values)

    def _error(self, function: str, problem: str, remedy: str = "") -> PluginError:
        return PluginError.of(TITLE, self.name, function, problem, remedy)


@dataclass(frozen=True)
class CheckedStream(CheckedEngine):
    """A user's engine that streams."""

    engine: StreamingEngine

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, list[Completion]]]:
        """What the engine yields: every prompt's index once, with `n` sound completions."""
        left = set(range(len(prompt_ids)))
        with calling(TITLE, self.name, "stream"):
            yielded = iter(self._pairs(self.engine.stream(prompt_ids, sampling, n, seeds)))
        while True:
            with calling(TITLE, self.name, "stream"):
                item = next(yielded, None)
            if item is None:
                break
            index = self._index(item, left)
            left.remove(index)
            yield index, self._group("stream", index, item[1], sampling, n)
        if left:
            raise self._error(
                "stream",
                f"ended without {plural(len(left), 'prompt')}, first index {min(left)}",
                "it must yield each prompt's index and its completions",
            )

    def _pairs(self, stream: Any) -> Any:
        if not hasattr(stream, "__iter__"):
            raise self._error(
                "stream", f"returned {shown(stream, 60)}", "it must yield (index, completions)"
            )
        return stream

    def _index(self, item: Any, left: set[int]) -> int:
        pair = isinstance(item, tuple | list) and len(item) == 2
        index = item[0] if pair else None
        if not isinstance(index, int | np.integer) or isinstance(index, bool):
            raise self._error(
                "stream", f"yielded {shown(item, 60)}", "it must yield (index, completions)"
            )
        if index not in left:
            raise self._error(
                "stream",
                f"yielded index {index}, which was not asked for or came before",
                "it must yield the index of each prompt once, from 0 on",
            )
        return int(index)


class _UnsoundError(Exception):
    """What is wrong with a completion, and what is allowed."""


def _completion(completion: Any, sampling: Sampling, vocabulary: int) -> Completion:
    """A completion with arrays of its types. Raises _UnsoundError if it is none, or not sound."""
    if not isinstance(completion, Completion):
        raise _UnsoundError(
            f"{shown(completion, 60)}, a {type(completion).__name__}; give "
            "cropi.rollouts.Completion(ids, logprobs, finish_reason)"
        )
    for name, value, allowed in (
        ("finish_reason", completion.finish_reason, get_args(FinishReason)),
        ("logprob_mode", completion.logprob_mode, get_args(LogprobMode)),
        ("exact", completion.exact, (True, False)),
    ):
        if not isinstance(value, str | bool | np.bool_) or value not in allowed:
            raise _UnsoundError(
                f"{name} {shown(value, 60)}; allowed: {', '.join(map(str, allowed))}"
            )
    ids = _ids(completion.ids, vocabulary, sampling.max_new_tokens)
    logprobs = _logprobs(completion.logprobs, len(ids), completion.exact)
    return replace(completion, ids=ids, logprobs=logprobs)


def _ids(values: Any, vocabulary: int, longest: int) -> NDArray[np.int32]:
    ids = _array("ids", values, "iu", "whole numbers")
    if len(ids) > longest:
        raise _UnsoundError(
            f"{len(ids)} ids where max_new_tokens is {longest}; stop after that many"
        )
    wrong = (ids < 0) | (ids >= vocabulary)
    if wrong.any():
        raise _UnsoundError(
            f"the token id {ids[wrong][0]}; the policy has the ids from 0 to {vocabulary - 1}"
        )
    return ids.astype(np.int32)


def _logprobs(values: Any, tokens: int, exact: bool) -> NDArray[np.float32]:
    """Log-probs of as many tokens; those of what is not exact are recomputed from the policy."""
    if not exact:
        return np.zeros(tokens, np.float32)
    logprobs = _array("logprobs", values, "fiu", "floats").astype(np.float32)
    if len(logprobs) != tokens:
        raise _UnsoundError(
            f"{plural(len(logprobs), 'log-prob')} for {plural(tokens, 'token')}; give one per token"
        )
    wrong = np.isnan(logprobs) | (logprobs > MAX_LOGPROB)
    if wrong.any():
        raise _UnsoundError(
            f"the log-prob {logprobs[wrong][0]:g}; give the natural log of each token's "
            "probability, which is never above 0"
        )
    return logprobs


def _array(name: str, values: Any, kinds: str, what: str) -> NDArray[Any]:
    """A one-dimensional array of numbers of these kinds."""
    try:
        # Lists of tensors' numbers, and tensors of types that NumPy lacks (bfloat16).
        array = np.asarray(values.tolist() if hasattr(values, "tolist") else values)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0, object)
    if array.shape == (0,) and array.dtype.kind == "f":
        return array
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise _UnsoundError(
            f"{name} {shown(values, 60)}; give a one-dimensional array of {what}, such as NumPy's"
        )
    return array
