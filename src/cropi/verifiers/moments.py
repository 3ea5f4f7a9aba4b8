"""Dates and times of day in one spelling: `the 4th of July` is `july 4`, `9 a.m.` is `9:00am`."""

from __future__ import annotations

import re

_MONTHS = (
    "january february march april may june july august september october november december"
).split()
_NAMES = "|".join((*_MONTHS, *(rf"{m[:3]}\.?" for m in _MONTHS), r"sept\.?"))
_MONTH = rf"(?P<month>{_NAMES})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:\s*,?\s*(?P<year>\d{4}))?"
_DATES = (
    re.compile(rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}{_YEAR}", re.IGNORECASE),
    re.compile(rf"{_MONTH}\s+(?:the\s+)?{_DAY}{_YEAR}", re.IGNORECASE),
)
_TIME = re.compile(r"0?(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap])\.?\s?m\b\.?", re.I)
_NAMED = {"noon": "12:00pm", "midday": "12:00pm", "midnight": "12:00am"}


def canonical_moment(text: str) -> str | None:
    """Return a date or time of day in one spelling; None if the text is neither."""
    text = text.strip().rstrip(".") if not text.rstrip().lower().endswith("m.") else text.strip()
    if text.lower() in _NAMED:
        return _NAMED[text.lower()]
    time = _TIME.fullmatch(text)
    if time is not None:
        return f"{time['hour']}:{time['minute'] or '00'}{time['half'].lower()}m"
    date = next((m for pattern in _DATES if (m := pattern.fullmatch(text))), None)
    if date is None:
        return None
    month = next(m for m in _MONTHS if m.startswith(date["month"].lower().rstrip(".")[:3]))
    year = f",{date['year']}" if date["year"] else ""
    return f"{month} {int(date['day'])}{year}"
