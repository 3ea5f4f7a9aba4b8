"""What servers are asked and answer: vLLM's `/v1/completions` and SGLang's `/generate`.

Both take token ids and return token ids with the log-prob of each; they differ in names. Every
field that shapes the distribution is sent, because one that is left out comes from the generation
config of the model that is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cropi.errors import InputError
from cropi.rollouts.engines.engine import Completion
from cropi.schema import FinishReason, LogprobMode, Sampling, derive_seed
from cropi.text import shown

NO_CHANCE = -9999.0
"""What vLLM writes for a log-prob of minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class Request:
    """`n` responses to a prompt of token ids; `stop_ids` end one, and are part of it."""

    prompt_ids: list[int]
    sampling: Sampling
    n: int
    seed: int
    stop_ids: list[int]


class Dialect(Protocol):
    """How one kind of server is talked to."""

    path: str
    mode: LogprobMode | None
    """Which log-probs it returns; None if that depends on how it was started."""
    several: bool
    """Whether it samples several responses to a prompt at once."""

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """Return the JSON that asks for the responses."""

    def completions(self, request: Request, answer: Any) -> list[Completion]:
        """Return the responses. Raises InputError if the answer does not hold them as token ids."""


class VllmDialect:
    """vLLM, and what has its token-id extensions of OpenAI's completions."""

    path = "/v1/completions"
    mode: LogprobMode | None = None
    several = True

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """Return the JSON that asks for the responses."""
        sampling = request.sampling
        return {
            "model": model,
            "prompt": request.prompt_ids,
            "n": request.n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "seed": request.seed,
            "logprobs": 0,
            "return_token_ids": True,
            "stop": [],
            "stop_token_ids": request.stop_ids,
            "min_p": 0.0,
            "min_tokens": 0,
            "ignore_eos": False,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def completions(self, request: Request, answer: Any) -> list[Completion]:
        """Return the responses of `choices`, in the order of their index."""
        choices = list_in(answer, "choices")
        for choice in choices:
            if not isinstance(choice, dict) or choice.get("token_ids") is None:
                raise no_token_ids("choices[].token_ids")
            if (prompt := choice.get("prompt_token_ids")) not in (None, request.prompt_ids):
                raise InputError(
                    f"the server read a prompt of {len(request.prompt_ids)} tokens as "
                    f"{len(prompt)} others; give a server that takes prompts as token ids"
                )
        ordered = sorted(choices, key=lambda choice: int(choice.get("index", 0)))
        return [
            _completion(
                choice["token_ids"],
                (choice.get("logprobs") or {}).get("token_logprobs"),
                choice.get("finish_reason"),
                request,
            )
            for choice in ordered
        ]


class SglangDialect:
    """SGLang: one request that holds the prompt `n` times, each with a seed of its own."""

    path = "/generate"
    mode: LogprobMode | None = "before_top_p"
    several = True

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """Return the JSON that asks for the responses."""
        sampling = request.sampling
        shared = {
            "n": 1,
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "min_new_tokens": 0,
            "ignore_eos": False,
            "stop": [],
            "stop_token_ids": request.stop_ids,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        seeds = [derive_seed(request.seed, "response", k) for k in range(request.n)]
        return {
            "input_ids": [request.prompt_ids] * request.n,
            "sampling_params": [{**shared, "sampling_seed": seed} for seed in seeds],
            "return_logprob": True,
        }

    def completions(self, request: Request, answer: Any) -> list[Completion]:
        """Return the responses; SGLang's answer is their list, or a single one."""
        answers = answer if isinstance(answer, list) else [answer]
        return [self._completion(each, request) for each in answers]

    def _completion(self, answer: Any, request: Request) -> Completion:
        about = answer.get("meta_info") if isinstance(answer, dict) else None
        rows = about.get("output_token_logprobs") if isinstance(about, dict) else None
        if not isinstance(about, dict) or rows is None:
            raise no_token_ids("meta_info.output_token_logprobs")
        reason = (about.get("finish_reason") or {}).get("type")
        return _completion([row[1] for row in rows], [row[0] for row in rows], reason, request)


def no_token_ids(where: str) -> InputError:
    """The error for a server that answers with text alone."""
    return InputError(
        f"the server's answer has no token ids ({where}), and text does not tell which tokens were "
        "sampled; use vLLM (0.10 or later) or SGLang, which return them, or accept tokens that are "
        "made of the text again with rollouts.engine.exact=false"
    )


def list_in(answer: Any, name: str) -> list[Any]:
    """A list in an answer. Raises InputError if there is none."""
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, list):
        raise InputError(
            f"the server's answer has no {name}: {shown(answer, 100)}; give the address of a vLLM "
            "or SGLang server"
        )
    return value


def _completion(ids: Any, logprobs: Any, reason: Any, request: Request) -> Completion:
    """One response, checked: a wrong one would be scored as if the policy had said it."""
    if not isinstance(logprobs, Sequence) or len(logprobs) != len(ids) or None in logprobs:
        raise InputError(
            f"the server returned {len(ids)} token ids without a log-prob for each; start it so "
            "that it returns log-probs (vLLM: --max-logprobs above 0)"
        )
    # The stop is the policy's own: servers call it so as well, and add reasons of their own.
    stopped = bool(len(ids)) and ids[-1] in request.stop_ids
    limit = request.sampling.max_new_tokens
    if not len(ids) or len(ids) > limit or (not stopped and len(ids) < limit):
        raise InputError(
            f"the server ended a response after {len(ids)} tokens without an end-of-sequence token "
            f"(finish_reason {shown(reason)}), below the limit of {limit}; give it room for "
            "prompt and response (vLLM: --max-model-len)"
        )
    values = np.array(logprobs, dtype=np.float32)
    values[values <= NO_CHANCE] = -np.inf
    finish: FinishReason = "stop" if stopped else "length"
    return Completion(np.array(ids, dtype=np.int32), values, finish)
