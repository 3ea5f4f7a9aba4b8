"""One format for each kind of number."""

from __future__ import annotations

import pytest

from cropi.estimation.intervals import Interval
from cropi.report.kit.number_format import (
    DASH,
    amount,
    duration,
    fixed,
    number,
    percent,
    percent_interval,
    points,
    ratio,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "\u2013"), (12, "12"), (999_999, "1M"), (1_234_567, "1.23M"), (5e18, "5E")],
)
def test_amounts_are_short(value: float | None, words: str) -> None:
    assert amount(value) == words


@pytest.mark.parametrize("value", [-0.0, -1e-9])
def test_what_rounds_to_zero_has_no_minus(value: float) -> None:
    around = Interval(value, -2e-9, 2e-9, 2)
    written = [
        amount(value),
        fixed(value, 2),
        percent(value),
        percent_interval(around),
        points(around, interval=True),
        number(-0.0),
    ]
    assert not [text for text in written if "-0" in text]


def test_durations_use_two_units() -> None:
    assert [duration(s) for s in (3.14, 42, 99, 7260)] == [
        "3.1 s",
        "42 s",
        "1 min 39 s",
        "2 h 01 min",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, DASH), (0.0, "never"), (0.8234, "0.82x"), (6.748, "6.75x"), (12.34, "12.3x")],
)
def test_ratios_have_the_digits_they_need(value: float | None, words: str) -> None:
    assert ratio(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, DASH), (float("nan"), DASH), (0.0, "0.0%"), (0.4304, "43.0%"), (0.000123, "0.012%")],
)
def test_small_shares_are_not_shown_as_zero(value: float | None, words: str) -> None:
    assert percent(value) == words


@pytest.mark.parametrize(
    ("value", "digits", "words"),
    [
        (None, 3, DASH),
        (0.0, 3, "0.00"),
        (0.48213, 3, "0.482"),
        (110.4, 2, "110"),
        (12_345.0, 3, "12,345"),
        (0.0000123, 3, "1.23e-5"),
        (2_500_000.0, 2, "2.5e6"),
    ],
)
def test_numbers_have_significant_digits_and_no_needless_exponent(
    value: float | None, digits: int, words: str
) -> None:
    assert number(value, digits) == words
