"""Servers that take and return text alone: any with OpenAI's `/v1/completions`.

The policy's tokenizer makes the token ids of a response again, which may be split otherwise than
they were sampled: such responses are not `exact`, and their log-probs are recomputed from the
policy. The prompt is checked: as text it has to be read as the ids that it stands for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.serving.dialects import Request, VllmDialect, list_in
from cropi.schema import FinishReason, LogprobMode
from cropi.text import shown


class TextDialect:
    """Text in, text out; `tokenizer` is the policy's."""

    path = VllmDialect.path
    mode: LogprobMode | None = "recomputed"
    several = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """Return the JSON that asks for the responses, with the prompt as text.

        Fields that only some servers know are sent too, because their defaults shape what they
        sample; others ignore them.
        """
        asked = VllmDialect().body(model, request)
        asked["prompt"] = self._text(request.prompt_ids)
        return {k: v for k, v in asked.items() if k not in ("logprobs", "return_token_ids")}

    def _text(self, prompt_ids: list[int]) -> str:
        """The text that the tokenizer reads as these ids, with or without its own first token."""
        for skipped in (0, 1):
            text = str(self._tokenizer.decode(prompt_ids[skipped:], skip_special_tokens=False))
            if list(self._tokenizer(text)["input_ids"]) == prompt_ids:
                return text
        raise InputError(
            f"the prompt {shown(text, 80)} is read as other tokens than its own when it is sent as "
            "text; use a server that takes token ids (rollouts.engine.exact=true)"
        )

    def completions(self, request: Request, answer: Any) -> list[Completion]:
        """Return the responses of `choices` as tokens of the policy's tokenizer."""
        return [self._completion(choice, request) for choice in list_in(answer, "choices")]

    def _completion(self, choice: Any, request: Request) -> Completion:
        if choice.get("token_ids") is not None:
            raise InputError(
                "the server returns token ids, which are exact where texts are not; leave "
                "rollouts.engine.exact at true"
            )
        text, reason = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise InputError(
                f"the server's answer has no text that ended by itself or at its limit "
                f"(finish_reason {shown(reason)}, text {shown(text, 60)}); give a server that "
                "completes text"
            )
        finish: FinishReason = "stop" if reason == "stop" else "length"
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        limit = request.sampling.max_new_tokens
        ids = [*ids, request.stop_ids[0]] if finish == "stop" else ids
        if len(ids) > limit:
            ids, finish = ids[:limit], "length"
        values = np.zeros(len(ids), dtype=np.float32)
        return Completion(np.array(ids, dtype=np.int32), values, finish, exact=False)
