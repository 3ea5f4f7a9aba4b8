"""Finds the question in a prompt that a chat template has rendered.

Trainers log the rendered text, often without the template's marks: a system message, the word
`user`, the question, the word `assistant`. What comes before and after the question is the same in
most rows. It is learned from a few rows by searching them for every known question; from then on a
row costs one look-up. Differences of white space are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from cropi.text import nfc

MOST_SEARCHES = 64
"""Rows that are searched for every question, and hold none, before searching stops."""


def single_spaced(text: str) -> str:
    """A text with single spaces for runs of white space, in one form of Unicode (NFC)."""
    return " ".join(nfc(text).split())


class QuestionFinder:
    """Finds which of many questions, single-spaced texts, a rendered prompt contains."""

    def __init__(self, questions: Collection[str]) -> None:
        self._questions = questions
        self._longest_first = sorted(questions, key=len, reverse=True)
        self._failed = 0
        self.templates: Counter[tuple[str, str]] = Counter()
        """The texts before and after questions, and how often each pair occurred."""

    def find(self, rendered: str) -> str | None:
        """The question in a rendered prompt; None if it contains none of them."""
        text = single_spaced(rendered)
        if text in self._questions:
            return text
        for (before, after), _ in self.templates.most_common():
            question = _between(text, before, after)
            if question in self._questions:
                self.templates[before, after] += 1
                return question
        return self._search(text)

    def _search(self, text: str) -> str | None:
        """Search for every question, longest first, since one may contain another."""
        if self._failed >= MOST_SEARCHES:
            return None
        question = next((q for q in self._longest_first if q in text), None)
        if question is None:
            self._failed += 1
            return None
        before, _, after = text.rpartition(question)
        self.templates[before, after] += 1
        return question


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after)):
        return ""
    return text[len(before) : len(text) - len(after)].strip()
