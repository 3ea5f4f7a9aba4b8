"""Dates and times of day in one spelling: `the 4th of July` is `july 4`, `9 a.m.` is `9:00am`."""

from __future__ import annotations

import re

_MONTHS = """
    january february march april may june july august september october november december
""".split()  # noqa: SIM905
_NAMES = "|".join((*_MONTHS, *(rf"{m[:3]}\.?" for m in _MONTHS), r"sept\.?"))
_MONTH = rf"(?P<month>{_NAMES})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:\s*,?\s*(?P<year>\d{4}))?"
_DATES = (
    re.compile(rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}{_YEAR}", re.IGNORECASE),
    re.compile(rf"{_MONTH}\s+(?:the\s+)?{_DAY}{_YEAR}", re.IGNORECASE),
)
_TIME = re.compile(r"0?(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap])\.?\s?m\b\.?", re.I)
# On a clock of 24 hours; up to 12:59 it may be either half of the day.
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
# 2024-02-29, or 02/29/2024 where the day cannot be a month.
_NUMERIC = re.compile(r"(\d{4})-(\d\d?)-(\d\d?)|(\d\d?)/(\d\d?)/(\d{4})")
_NAMED = {"noon": "12:00pm", "midday": "12:00pm", "midnight": "12:00am"}


def canonical_moment(text: str) -> str | None:
    """Return a date or time of day in one spelling; None if the text is neither."""
    text = text.strip().rstrip(".") if not text.rstrip().lower().endswith("m.") else text.strip()
    if text.lower() in _NAMED:
        return _NAMED[text.lower()]
    numeric = _NUMERIC.fullmatch(text)
    if numeric is not None:
        year, month, day = (
            numeric[1] or numeric[6],
            numeric[2] or numeric[4],
            numeric[3] or numeric[5],
        )
        if numeric[1] or int(day) > 12:
            return _date(int(month), int(day), year)
    time = _TIME.fullmatch(text)
    if time is not None:
        return f"{time['hour']}:{time['minute'] or '00'}{time['half'].lower()}m"
    clock = _CLOCK.fullmatch(text)
    if clock is not None and (int(clock[1]) > 12 or int(clock[1]) == 0):
        return f"{int(clock[1]) % 12 or 12}:{clock[2]}{'pm' if int(clock[1]) > 12 else 'am'}"
    date = next((m for pattern in _DATES if (m := pattern.fullmatch(text))), None)
    if date is None:
        return None
    month = next(
        n for n, m in enumerate(_MONTHS, 1) if m.startswith(date["month"].lower().rstrip(".")[:3])
    )
    return _date(month, int(date["day"]), date["year"])


def _date(month: int, day: int, year: str | None) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{_MONTHS[month - 1]} {day}" + (f",{year}" if year else "")
