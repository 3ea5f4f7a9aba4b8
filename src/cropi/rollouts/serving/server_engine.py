"""Rollouts from a server that has the policy: one request per prompt, with a seed of its own.

Before the first prompt the server says what it serves, and shows by a few greedy responses which
log-probs it returns; their mode goes into the rollouts. A server batches requests as they come, so
that log-probs of equal calls differ by rounding, and responses now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cropi.errors import InputError
from cropi.policy.reference import PolicyRef
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.serving.connection import Connection
from cropi.rollouts.serving.dialects import Dialect, Request, SglangDialect, VllmDialect
from cropi.rollouts.serving.logprob_mode import effective_mode, measured_mode
from cropi.rollouts.serving.text_dialect import TextDialect
from cropi.rollouts.serving.threads import in_threads
from cropi.schema import LogprobMode, Sampling, derive_seed
from cropi.text import shown


@dataclass(frozen=True)
class Address:
    """Where a server is, its key, and its name for the policy (None: that of the policy)."""

    url: str
    key: str | None = field(default=None, repr=False)
    model: str | None = None


@dataclass(frozen=True)
class Served:
    """What the server serves: its name for the policy, how it is talked to, and its context."""

    model: str
    dialect: Dialect
    context: int | None


class ServerEngine:
    """Samples `policy` from the server at `address`, `concurrency` prompts at once.

    A request has `timeout` seconds, and is made `tries` times at most; `still_there` raises where
    another try would be of no use. With `exact` false, the server returns text alone.
    """

    def __init__(
        self,
        address: Address,
        policy: PolicyRef,
        concurrency: int,
        timeout: float,
        tries: int,
        still_there: Callable[[], None] = lambda: None,
        exact: bool = True,
    ) -> None:
        self._address, self._policy, self._concurrency = address, policy, concurrency
        self._exact = exact
        self._mode: LogprobMode | None = None
        self._connection = Connection(
            address.url,
            address.key,
            connections=concurrency,
            timeout=timeout,
            tries=tries,
            still_there=still_there,
        )

    @property
    def context(self) -> int:
        """Positions that both the policy and the server have."""
        ours = self._policy.context
        return min(ours, self._served.context or ours)

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        """Return `n` completions per prompt, in order; equal calls differ by rounding."""
        seeds = [derive_seed(seed, "prompt", index) for index in range(len(prompt_ids))]
        sampled = dict(self.stream(prompt_ids, sampling, n, seeds))
        return [sampled[index] for index in range(len(prompt_ids))]

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's index and its `n` completions as they arrive."""
        if not prompt_ids:
            return
        mode = effective_mode(self._mode_on(prompt_ids, sampling.max_new_tokens), sampling)
        greedy = sampling.temperature == 0  # equal responses, which servers refuse to repeat

        def sample(index: int) -> list[Completion]:
            asked = 1 if greedy else n
            completions = self._several(prompt_ids[index], sampling, asked, seeds[index])
            return [replace(each, logprob_mode=mode) for each in completions] * (n // asked)

        yield from in_threads(sample, len(prompt_ids), self._concurrency)

    def _several(
        self, ids: Sequence[int], sampling: Sampling, n: int, seed: int
    ) -> list[Completion]:
        """Return `n` responses, one by one from servers that do not sample several at once."""
        if self._served.dialect.several:
            return self._ask(ids, sampling, n, seed)
        seeds = [derive_seed(seed, "response", k) for k in range(n)]
        return [response for each in seeds for response in self._ask(ids, sampling, 1, each)]

    def _ask(
        self, ids: Sequence[int], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[Completion]:
        """Return `n` responses. Raises InputError if the server does not send them."""
        served, stop_ids = self._served, list(self._policy.eos_token_ids)
        request = Request(list(map(int, ids)), sampling, n, seed, stop_ids)
        answer = self._connection.post(
            served.dialect.path, served.dialect.body(served.model, request)
        )
        try:
            completions = served.dialect.completions(request, answer)
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise self._refused(
                f"answered {shown(answer, 150)}, which is not what {served.dialect.path} returns; "
                "update it"
            ) from None
        if len(completions) != n:
            raise self._refused(
                f"returned {len(completions)} responses where {n} were asked for; use vLLM or "
                "SGLang, which sample several"
            )
        return completions

    def _refused(self, reason: str) -> InputError:
        return InputError(f"the server at {self._address.url} {reason}")

    def _mode_on(self, prompt_ids: Sequence[Sequence[int]], new_tokens: int) -> LogprobMode:
        """Which log-probs the server returns, found out once with these prompts."""
        if self._mode is None:
            self._mode = self._served.dialect.mode or measured_mode(
                lambda ids, sampling: self._ask(ids, sampling)[0], prompt_ids, new_tokens
            )
        return self._mode

    @cached_property
    def _served(self) -> Served:
        listed = self._connection.get("/v1/models")
        cards = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(cards, list) or not all(
            isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards
        ):
            raise self._refused("does not list its models; give that of a vLLM or SGLang server")
        card = self._card(cards)
        context = card.get("max_model_len")
        return Served(
            card["id"],
            self._dialect(card),
            context if isinstance(context, int) and context > 0 else None,
        )

    def _dialect(self, card: dict[str, Any]) -> Dialect:
        if not self._exact:
            return TextDialect(self._policy.tokenizer)
        return SglangDialect() if card.get("owned_by") == "sglang" else VllmDialect()

    def _card(self, cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The policy's entry among what the server lists; weights of another name are refused."""
        names = ", ".join(card["id"] for card in cards) or "nothing"
        wanted, ours = self._address.model, self._policy.identity.name
        if wanted is not None:
            same = [card for card in cards if card["id"] == wanted]
        else:
            same = [card for card in cards if _last_part(ours) in _names(card)]
        if len(same) != 1:
            raise self._refused(
                f"serves {names}, and the policy is {wanted or ours}; give the server's name for "
                "the policy's weights as rollouts.engine.model"
            )
        return same[0]


def _names(card: dict[str, Any]) -> set[str]:
    return {_last_part(str(card.get(key) or "")) for key in ("id", "root")}


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
