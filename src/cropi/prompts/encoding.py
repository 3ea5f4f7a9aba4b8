"""The one place where a prompt becomes token ids.

Rollouts, gradients, training and evaluation must see the same tokens: the chat template is applied
once to `messages`, and never to text. Those are the ids that TRL's GRPOTrainer makes of the same
prompts, where it can: it knows neither tools of single prompts nor answers that are already begun.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cropi.errors import InputError
from cropi.schema import EMBEDDING_ROWS, Prompt
from cropi.text import shortened, shown

if TYPE_CHECKING:
    from cropi.prompts.sets import PromptSets


LONGEST_TOKEN = 256
"""Characters; tokens of long runs of spaces have half as many."""


def encode(
    tokenizer: Any, prompt: Prompt, template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the token ids of a prompt, as TRL's GRPOTrainer would make them.

    Raises InputError if the prompt is a chat and the tokenizer has no chat template, or if the text
    holds a token that the model lacks.
    """
    ids = _encode(tokenizer, prompt, template_kwargs)
    rows = getattr(tokenizer, EMBEDDING_ROWS, None)
    if rows is not None and max(ids, default=0) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise InputError(
            f"prompt {prompt.prompt_id!r} holds the token {shown(token, 40)} with the id "
            f"{max(ids)}, and the model has {rows} token embeddings; take it out of the prompt or "
            "the chat template, or give model and tokenizer of the same checkpoint"
        )
    return ids


def has_chat_template(tokenizer: Any) -> bool:
    """Whether chats can be encoded with this tokenizer; not without one."""
    return bool(getattr(tokenizer, "chat_template", None))


def _encode(tokenizer: Any, prompt: Prompt, template_kwargs: Mapping[str, Any] | None) -> list[int]:
    if prompt.messages is None:
        return list(tokenizer(prompt.prompt)["input_ids"])
    if not has_chat_template(tokenizer):
        raise InputError(
            f"prompt {prompt.prompt_id!r} is a chat and the tokenizer of {_name(tokenizer)} has no "
            "chat template; choose an instruct model, or give the prompts as text"
        )
    ids = _templated(tokenizer, prompt, prompt.tools, template_kwargs)
    if prompt.tools and ids == _templated(tokenizer, prompt, (), template_kwargs):
        warnings.warn(
            f"the chat template of {_name(tokenizer)} does not show tools, so that the model never "
            "sees those of the prompts; choose a model that calls tools, or remove the column",
            stacklevel=2,
        )
    return ids


def _templated(
    tokenizer: Any,
    prompt: Prompt,
    tools: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any] | None,
) -> list[int]:
    """The token ids that the chat template makes of a chat."""
    goes_on = prompt.continued is not None
    try:
        encoded = tokenizer.apply_chat_template(
            conversation=[dict(m) for m in prompt.messages or ()],
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=True,
            return_dict=True,
            **(template_kwargs or {}),
        )
    except Exception as error:  # templates raise what they like
        reason = shortened(" ".join(str(error).split()), 200)
        raise InputError(
            f"the chat template of {_name(tokenizer)} cannot show prompt {prompt.prompt_id!r} "
            f"({reason}); change the prompt's messages, or choose another model"
        ) from error
    return list(encoded["input_ids"])


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "the model")


def encode_all(
    tokenizer: Any, prompts: Sequence[Prompt], template_kwargs: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Return the token ids of every prompt, in order; raises as `encode` does."""
    return [encode(tokenizer, prompt, template_kwargs) for prompt in prompts]


@dataclass(frozen=True)
class Room:
    """The tokens that a prompt may have, and what gives it more."""

    tokens: int
    fix: str = "raise prompts.max_tokens"

    @classmethod
    def of(cls, max_tokens: int | None, context: int, longest: tuple[str, int]) -> Room:
        """The given limit, or what the longest response, under its setting, leaves of the context.

        Raises InputError if a response leaves nothing for a prompt.
        """
        key, tokens = longest
        if tokens >= context:
            raise InputError(
                f"{key}={tokens} leaves no room for a prompt in the model's context of {context} "
                "tokens; lower it"
            )
        fix = f"lower {key} (now {tokens}, of a context of {context})"
        return cls(max_tokens) if max_tokens else cls(context - tokens, fix)


def drop_overlong(
    tokenizer: Any,
    sets: PromptSets,
    room: Room,
    overlong: Literal["error", "drop"] = "error",
    template_kwargs: Mapping[str, Any] | None = None,
) -> PromptSets:
    """Return the sets without prompts of more tokens than there is room for, counted in the notes.

    Raises InputError if there is such a prompt and `overlong` is "error", or a set becomes empty.
    """
    notes = replace(sets.notes, overlong={}, sizes=dict(sets.notes.sizes))
    fitting: dict[str, list[Prompt]] = {}
    for name, prompts in sets.named().items():
        lengths = [_length(tokenizer, p, room.tokens, template_kwargs) for p in prompts]
        fits = [p for p, n in zip(prompts, lengths, strict=True) if n <= room.tokens]
        if len(fits) < len(prompts):
            if overlong == "error" or not fits:
                raise _overlong_error(name, prompts, lengths, room, overlong)
            notes.overlong[name] = len(prompts) - len(fits)
        fitting[name] = fits
        notes.sizes[name] = len(fits)
    return replace(
        sets,
        pool=fitting["pool"],
        validation={name: fitting[f"validation {name}"] for name in sets.validation},
        test={name: fitting[f"test {name}"] for name in sets.test},
        notes=notes,
    )


def _length(
    tokenizer: Any, prompt: Prompt, max_tokens: int, template_kwargs: Mapping[str, Any] | None
) -> int:
    """Count the tokens of a prompt; one that is far too long is estimated instead of tokenised."""
    fewest = len(prompt.content) // LONGEST_TOKEN
    return fewest if fewest > max_tokens else len(encode(tokenizer, prompt, template_kwargs))


def _overlong_error(
    name: str,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    room: Room,
    overlong: Literal["error", "drop"],
) -> InputError:
    """Return the error for overlong prompts that may not be dropped, or are all there is."""
    place = next(i for i, n in enumerate(lengths) if n > room.tokens)
    over = sum(n > room.tokens for n in lengths)
    drop = "set prompts.overlong=drop, or " if overlong == "error" and over < len(prompts) else ""
    return InputError(
        f"{over} of {len(prompts)} prompts of the set {name} are over {room.tokens} tokens (the "
        f"first is {prompts[place].prompt_id!r} with {lengths[place]}); {drop}{room.fix}"
    )
