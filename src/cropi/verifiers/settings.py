"""Settings of the verifiers that judge responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cropi.settings import Count, Section


class RewardTerm(Section):
    """One reward function of a weighted sum."""

    function: str = Field(description="a verifier, as under verifiers.default")
    weight: float = Field(1.0, description="its weight in the sum")


class VerifiersConfig(Section):
    """Who judges a response: by `source`, first matching pattern, else `default`."""

    default: str | list[RewardTerm] = Field(
        "math",
        description="a built-in verifier, file.py:function or package.module:function, or a "
        "weighted sum of such",
    )
    sources: dict[str, str | list[RewardTerm]] = Field(
        default_factory=dict, description="source pattern (* and ? allowed) -> verifier"
    )
    timeout: Annotated[float, Field(gt=0)] = Field(10.0, description="seconds for one response")
    workers: Count = Field(1, description="processes that judge at the same time")
    threshold: float | None = Field(
        None,
        description="a response passes at this reward or above; default: graded (the mean reward)",
    )
