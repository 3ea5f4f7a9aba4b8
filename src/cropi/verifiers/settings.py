"""Settings of the verifiers that judge responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cropi.plugins import resolve_name
from cropi.settings import Section

_TAG = re.compile(r"[\w-]+|\S.*\.\.\..*\S")


class RewardTerm(Section):
    """One reward function of a weighted sum."""

    function: str = Field(description="a verifier, as under verifiers.default")
    weight: float = Field(1.0, description="its weight in the sum")


class VerifiersConfig(Section):
    """Which verifier judges: the first in `sources` whose pattern matches, else `default`."""

    default: str | list[RewardTerm] = Field(
        "math",
        description="a built-in verifier, file.py:function or package.module:function, or a "
        "weighted sum of such",
    )
    sources: dict[str, str | list[RewardTerm]] = Field(
        default_factory=dict, description="source pattern (* and ? allowed) -> verifier"
    )
    timeout: Annotated[float, Field(ge=0.001, le=86_400)] = Field(
        10.0, description="seconds that judging one response may take"
    )
    memory_gb: Annotated[float, Field(ge=1, le=1_000_000)] | None = Field(
        16.0,
        description="GiB of address space for each process that judges; a response that needs more "
        "counts as not judged; null: no limit, for a verifier with a model on a GPU",
    )
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="processes that judge at the same time; default: one per core, at most 8",
    )
    threshold: float | None = Field(
        None,
        description="a response passes at this reward or above; default: graded (the mean reward)",
    )
    unreadable: Literal["error", "drop"] = Field(
        "error",
        description="rows whose answer no verifier can read: an error, or left out of runs and "
        "rollouts and counted",
    )
    think_tags: list[str] = Field(
        ["think"],
        description="tags around a model's thoughts, which hold no answer: `think` for "
        "<think>...</think>, or both ends as OPEN...CLOSE",
    )
    answer_tags: list[str] = Field(
        ["answer"], description="tags around the answer, written as think_tags are"
    )

    @field_validator("think_tags", "answer_tags")
    @classmethod
    def _check_tags(cls, tags: list[str]) -> list[str]:
        if bad := [tag for tag in tags if not _TAG.fullmatch(tag)]:
            raise ValueError(f"{bad[0]!r} is not a tag; write a name or OPEN...CLOSE")
        return tags


def resolved(verifiers: VerifiersConfig, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Verifier settings in which the paths of files are absolute."""

    def of(functions: str | list[RewardTerm]) -> Any:
        if isinstance(functions, str):
            return resolve_name("verifier", functions, folders)
        terms = [term.model_dump() for term in functions]
        return [{**t, "function": resolve_name("verifier", t["function"], folders)} for t in terms]

    return {
        **verifiers.model_dump(),
        "default": of(verifiers.default),
        "sources": {pattern: of(function) for pattern, function in verifiers.sources.items()},
    }
