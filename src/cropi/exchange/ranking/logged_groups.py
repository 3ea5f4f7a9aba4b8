"""Rollouts with token ids, made of what a trainer logged: its ids, or its texts tokenised again.

Where the log has token ids, they are data. Texts alone are tokenised with the policy's tokenizer
and chat template, which may split them differently from how they were sampled: such groups are not
`exact`. Only a prompt's newest group counts, which a policy closest to the current one sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.exchange.imports.logged import LoggedResponse, Tokens
from cropi.exchange.imports.question_finder import single_spaced
from cropi.exchange.ranking.ranking import LoggedPool
from cropi.policy.reference import PolicyRef
from cropi.prompts import encode
from cropi.prompts.formats import TEMPLATE_MARKS
from cropi.schema import PolicyIdentity, Prompt, Response, RolloutGroup, Sampling
from cropi.text import plural, shown

LEAST_AGREEING = 0.5
"""Share of logged texts that the policy's tokenizer has to read out of the logged ids."""
PARTLY_TEXT = "whose text is not all that was sampled (turns, calls, thoughts), left out"
COMPARED_RESPONSES = 50
"""Responses whose ids and texts are compared."""


@dataclass
class LoggedGroups:
    """One group per prompt that has responses [G], in the pool's order.

    `with_logprobs` says whether every response has the sampler's log-probs; without them those in
    the groups are 0, and no ratio may be formed.
    """

    groups: list[RolloutGroup]
    with_logprobs: bool
    notes: list[str] = field(default_factory=list)


def logged_groups(
    logged: LoggedPool,
    policy: PolicyRef,
    temperature: float,
    template_kwargs: Mapping[str, Any] | None = None,
) -> LoggedGroups:
    """The newest group of each prompt as rollouts; `temperature` is where the log says nothing.

    Raises InputError if the ids are of another tokenizer, or there is nothing to tokenise.
    """
    maker = _GroupMaker(logged, policy, temperature, template_kwargs or {})
    pairs = zip(logged.prompts, logged.history, strict=True)
    groups = [
        maker.group(prompt, [logged.log.responses[m] for m in history.newest.members])
        for prompt, history in pairs
        if history
    ]
    _require_same_tokenizer(logged.log.responses, policy.tokenizer)
    judged = [r for group in groups for r in group.usable]
    if not judged:
        raise InputError(
            f"{logged.log.place} has no response whose tokens are known or can be made: "
            f"{'; '.join(maker.notes()) or 'none was judged'}; rank without gradients "
            "(--no-gradients)"
        )
    return LoggedGroups(groups, maker.lacking == 0, maker.notes())


class _GroupMaker:
    """Makes groups, and counts what is doubtful about them."""

    def __init__(
        self,
        logged: LoggedPool,
        policy: PolicyRef,
        temperature: float,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        self._format = logged.log.format
        self._whole = logged.pairing.complete
        self._policy = policy
        self._temperature = temperature
        self._template_kwargs = template_kwargs
        self._counts: Counter[str] = Counter()
        self.lacking = 0

    def group(self, prompt: Prompt, logged: Sequence[LoggedResponse]) -> RolloutGroup:
        """The rollouts of one prompt's newest group."""
        made = [self._tokens(prompt, response) for response in logged]
        given = [tokens for tokens in made if tokens is not None]
        prompt_ids = given[0].prompt_ids if given else np.array(self._encoded(prompt), np.int32)
        responses = [
            self._response(response, tokens, prompt_ids)
            for response, tokens in zip(logged, made, strict=True)
        ]
        lengths = [len(response.ids) for response in responses]
        stated = next((r.temperature for r in logged if r.temperature is not None), None)
        if stated == 0:  # greedy: there is no distribution that it was sampled from
            self._counts[
                f"sampled greedily, taken as sampled at temperature {self._temperature:g}"
            ] += len(logged)
            stated = None
        return RolloutGroup(
            prompt_id=prompt.prompt_id,
            prompt_ids=prompt_ids,
            responses=responses,
            sampling=Sampling(
                self._temperature if stated is None else stated,
                max_new_tokens=max(lengths, default=1) or 1,
            ),
            policy=PolicyIdentity(self._format, step=logged[0].step or 0),
            exact=all(response.tokens is not None for response in logged),
        )

    def _tokens(self, prompt: Prompt, response: LoggedResponse) -> Tokens | None:
        """The logged tokens, or those of the text; None where the policy's cannot be told."""
        if response.tokens is not None:
            return response.tokens
        if not response.whole_text:
            self._counts[PARTLY_TEXT] += 1
            return None
        if not response.text and response.status == "ok":
            self._counts["without a text, left out"] += 1
            return None
        return self._tokenised(prompt, response)

    def _tokenised(self, prompt: Prompt, response: LoggedResponse) -> Tokens:
        tokenizer = self._policy.tokenizer
        ids = list(tokenizer(response.text, add_special_tokens=False)["input_ids"])
        if response.finish != "length":
            ids.append(self._policy.eos_token_ids[0])
        self._counts["that are text, tokenised again with the policy's tokenizer"] += 1
        if not response.finish:
            self._counts["of which the log does not say how they ended, taken as complete"] += 1
        prompt_ids = self._encoded(prompt)
        if response.rendered and isinstance(response.prompt, str):
            self._compare(prompt_ids, response.prompt)
        return Tokens(np.array(prompt_ids, np.int32), np.array(ids, np.int32))

    def _encoded(self, prompt: Prompt) -> list[int]:
        """The policy's ids of a prompt. Raises InputError for a text that a template has made."""
        if not self._whole and not TEMPLATE_MARKS.search(prompt.prompt or ""):
            raise InputError(
                f"the log has the prompt {shown(prompt.content or prompt.prompt_id, 80)} as a chat "
                "template made it, without the template's marks; give the rows of your data with "
                "--prompts, or rank without gradients (--no-gradients)"
            )
        return encode(self._policy.tokenizer, prompt, self._template_kwargs)

    def _compare(self, prompt_ids: list[int], logged: str) -> None:
        text = self._policy.tokenizer.decode(prompt_ids, skip_special_tokens=True)
        if single_spaced(text) != single_spaced(logged):
            self._counts[
                "whose prompt the policy's chat template renders differently (--system, --template)"
            ] += 1

    def _response(self, logged: LoggedResponse, tokens: Tokens | None, prompt_ids: Any) -> Response:
        """A response, which counts only if its tokens are known and follow the group's prompt."""
        if tokens is not None and not np.array_equal(tokens.prompt_ids, prompt_ids):
            self._counts["after other prompt tokens than the group's first, left out"] += 1
            tokens = None
        if tokens is None:
            empty = np.zeros(0, np.int32)
            return Response(empty, empty.astype(np.float32), logged.text, reward_status="error")
        judged = logged.status == "ok"
        if tokens.logprobs is None and judged:
            self.lacking += 1
        zeros = np.zeros(len(tokens.ids), np.float32)
        return Response(
            ids=tokens.ids,
            logprobs=zeros if tokens.logprobs is None else tokens.logprobs,
            text=logged.text,
            finish_reason="length" if logged.finish == "length" else "stop",
            reward=logged.reward if judged else float("nan"),
            reward_status=logged.status,
            loss_mask=tokens.loss_mask,
            policy_versions=tokens.policy_versions,
        )

    def notes(self) -> list[str]:
        """One line for each finding, with its count."""
        return [f"{plural(count, 'response')} {what}" for what, count in self._counts.items()]


def _require_same_tokenizer(responses: Sequence[LoggedResponse], tokenizer: Any) -> None:
    """Raise InputError if logged ids are not those of the logged texts under this tokenizer."""
    both = [r for r in responses if r.tokens is not None and r.text.strip() and r.whole_text]
    compared = both[:: max(1, len(both) // COMPARED_RESPONSES)]
    wrong = [r for r in compared if not _reads(tokenizer, r)]
    if compared and len(wrong) > LEAST_AGREEING * len(compared):
        raise InputError(
            f"the token ids of the log are not of the policy's tokenizer: {len(wrong)} of "
            f"{len(compared)} responses decode to another text, such as "
            f"{shown(wrong[0].text, 60)}; give the policy that the run trained"
        )


def _reads(tokenizer: Any, response: LoggedResponse) -> bool:
    """Whether ids decode to the logged text; marks that a log leaves out do not count."""
    assert response.tokens is not None
    try:
        text = tokenizer.decode(response.tokens.ids.tolist(), skip_special_tokens=True)
    except (IndexError, OverflowError, TypeError, ValueError):
        return False
    return single_spaced(response.text) in single_spaced(text) or single_spaced(
        text
    ) in single_spaced(response.text)
