"""The tags around a model's thoughts and around its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tags:
    """Tag names (`think` is `<think>...</think>`), or both ends written `OPEN...CLOSE`."""

    think: tuple[str, ...] = ("think",)
    answer: tuple[str, ...] = ("answer",)

    def after_thoughts(self, text: str) -> str | None:
        """Return what follows the last closed thought; None if a thought is never closed."""
        for opening, closing in map(tag_ends, self.think):
            text = text.rpartition(closing)[2]
            if opening in text:
                return None
        return text

    def tagged(self, text: str) -> str | None:
        """Return what the last answer tag holds, up to the end if it is not closed; else None."""
        starts = [(text.rfind(o), o, c) for o, c in map(tag_ends, self.answer) if o in text]
        if not starts:
            return None
        start, opening, closing = max(starts)
        return text[start + len(opening) :].partition(closing)[0].strip()


DEFAULT_TAGS = Tags()


def tag_ends(tag: str) -> tuple[str, str]:
    """Return the opening and the closing tag of a name or of `OPEN...CLOSE`."""
    opening, dots, closing = tag.partition("...")
    return (opening, closing) if dots else (f"<{tag}>", f"</{tag}>")
