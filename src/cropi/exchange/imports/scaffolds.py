"""Where a prompt is in the text that a chat template made of it.

Trainers log the rendered text, often without the template's marks: a system message, the word
`user`, the question, the word `assistant`. What stands before and after the question is the same in
most rows. It is learned from a few rows by looking for every known question in them; from then on
a row costs one look-up. All texts are compared without differences of white space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from cropi.text import composed

MOST_SEARCHES = 64
"""Rows without a known question that are searched for all of them before giving up."""


def folded(text: str) -> str:
    """A text with single spaces for white space, in one form of Unicode."""
    return " ".join(composed(text).split())


class QuestionFinder:
    """Finds which of many questions, folded texts, a rendered text holds."""

    def __init__(self, questions: Collection[str]) -> None:
        self._questions = questions
        self._longest_first = sorted(questions, key=len, reverse=True)
        self._failed = 0
        self.scaffolds: Counter[tuple[str, str]] = Counter()
        """What stood before and after the questions, and how often."""

    def find(self, rendered: str) -> str | None:
        """The question that a text holds; None if it holds none that is known."""
        text = folded(rendered)
        if text in self._questions:
            return text
        for before, after in [scaffold for scaffold, _ in self.scaffolds.most_common()]:
            question = _between(text, before, after)
            if question in self._questions:
                self.scaffolds[before, after] += 1
                return question
        return self._search(text)

    def _search(self, text: str) -> str | None:
        """Look for every question; the longest counts, as it may hold a shorter one."""
        if self._failed >= MOST_SEARCHES:
            return None
        question = next((q for q in self._longest_first if q in text), None)
        if question is None:
            self._failed += 1
            return None
        before, _, after = text.rpartition(question)
        self.scaffolds[before, after] += 1
        return question


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after)):
        return ""
    return text[len(before) : len(text) - len(after)].strip()
