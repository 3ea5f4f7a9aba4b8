"""Which prompts are the same: stable ids without collisions, and text that two sets share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from cropi.errors import InputError
from cropi.schema import Prompt

Key = tuple[str, str]


def content_key(prompt: Prompt) -> Key:
    """Return what makes two prompts one: the text and the answer."""
    return (prompt.content, prompt.answer)


def distinct(prompts: Iterable[Prompt], name: str) -> tuple[list[Prompt], int]:
    """Keep the first of prompts with the same content; return them and how many were dropped.

    Raises InputError if one given id stands on two prompts with different content.
    """
    by_id: dict[str, Prompt] = {}
    seen: set[Key] = set()
    dropped = 0
    for prompt in prompts:
        known = by_id.get(prompt.prompt_id)
        key = content_key(prompt)
        if known is not None and content_key(known) != key:
            raise _collision(prompt, known, name)
        if key in seen:
            dropped += 1
            continue
        seen.add(key)
        by_id[prompt.prompt_id] = prompt
    return list(by_id.values()), dropped


def _collision(prompt: Prompt, known: Prompt, name: str) -> InputError:
    first, second = (f"{p.content[:60]!r} -> {p.answer[:20]!r}" for p in (known, prompt))
    return InputError(
        f"{name}: the id {prompt.prompt_id!r} stands on two different prompts ({first} and "
        f"{second}); make the ids unique, or remove the id column so that ids come from the content"
    )


def normalised(text: str) -> str:
    """Fold case, Unicode forms, runs of whitespace, and punctuation at both ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    start, end = 0, len(words)
    while start < end and _edge(words[start]):
        start += 1
    while end > start and _edge(words[end - 1]):
        end -= 1
    return words[start:end] or words


def _edge(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] == "P"


def question_text(prompt: Prompt, template: str | None) -> str:
    """Return what the prompt asks, without system message and template.

    Sets often share questions and differ in what stands around them; that must not hide overlap.
    """
    if prompt.prompt is not None:
        return _untemplated(prompt.prompt, template)
    spoken = [m["content"] for m in prompt.messages or () if m["role"] != "system"]
    return "\n".join([*spoken[:-1], _untemplated(spoken[-1], template)]) if spoken else ""


def _untemplated(text: str, template: str | None) -> str:
    before, _, after = (template or "{prompt}").partition("{prompt}")
    return text.removeprefix(before).removesuffix(after)
