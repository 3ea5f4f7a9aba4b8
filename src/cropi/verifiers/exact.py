"""`exact`: the response is the answer, character by character, except for outer whitespace.

Both sides are brought to one form of Unicode (NFC) and of line ends, and `2.0` for the 2 that a
column of floats holds is the same answer.
"""

from __future__ import annotations

import re
import unicodedata

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.alternatives import alternatives
from cropi.verifiers.verdict import Decision

_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0")


@plugin("verifier", "exact")
class ExactVerifier:
    """Compares the response with the prompt's answer, character by character."""

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return 1.0 if the response equals an answer, else 0.0."""
        stated = _one_form(completion)
        for answer in (prompt.answer, *alternatives(prompt)):
            gold = _one_form(answer)
            whole = _WHOLE_FLOAT.fullmatch(gold)
            if stated == gold or (whole is not None and stated == whole[1]):
                return 1.0
        return 0.0

    def decide(self, prompt: Prompt, completion: str) -> Decision:
        """Return whether the response is right; all of it is the statement."""
        return Decision(self(prompt, completion) == 1.0, "text", completion)

    def read_as(self, prompt: Prompt) -> str:
        """Return the texts that count."""
        return ", or ".join(f"text {answer!r}" for answer in alternatives(prompt))


def _one_form(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
