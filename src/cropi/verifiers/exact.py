"""`exact`: the response is the answer, character by character, except for outer whitespace."""

from __future__ import annotations

from cropi.plugins import plugin
from cropi.schema import Prompt


@plugin("verifier", "exact")
def verify(prompt: Prompt, completion: str) -> float:
    """Return 1.0 if the response equals the answer after stripping both, else 0.0."""
    return float(completion.strip() == prompt.answer.strip())
