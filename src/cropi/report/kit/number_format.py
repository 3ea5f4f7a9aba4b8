"""How numbers are written on every page and in the terminal: one format for each kind.

A number that was not measured is a dash, and one that rounds to 0 has no minus (`z`). Intervals
follow in brackets, or after ± where they are symmetric.
"""

from __future__ import annotations

from cropi.estimation.intervals import Interval

DASH = "\u2013"
"""A number that was not measured."""
NEVER = "never"
"""A level that is not reached: a ratio of 0."""


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as a percentage, small ones with two significant digits."""
    if value is None or value != value:
        return DASH
    if 0 < value < 0.001:
        return f"{100 * value:.2g}%"
    return f"{100 * value:z.{digits}f}%"


def percent_interval(share: Interval | None) -> str:
    """Format a share with its interval: 89.1% [88.0, 90.2]."""
    if share is None:
        return DASH
    if share.low is None or share.high is None:
        return percent(share.mean)
    return f"{percent(share.mean)} [{100 * share.low:z.1f}, {100 * share.high:z.1f}]"


def points(change: Interval | None, interval: bool = False) -> str:
    """Format a difference of accuracies in points, with its interval if asked: +1.2 [0.4, 2.0]."""
    if change is None:
        return DASH
    value = f"{100 * change.mean:+z.1f}"
    if not interval or change.low is None or change.high is None:
        return value
    return f"{value} [{100 * change.low:z.1f}, {100 * change.high:z.1f}]"


def change(start: float | None, end: float | None) -> str:
    """Format two accuracies: 43.0% → 62.1%; a dash if nothing was measured."""
    return DASH if end is None else f"{percent(start)} → {percent(end)}"


def ratio(value: float | None) -> str:
    """Format a ratio with the digits that one near 1 needs: 2.31x; 0 is never."""
    if value is None:
        return DASH
    if value == 0:
        return NEVER
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def ratio_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Format a ratio with its interval: 2.31x [1.90, 2.80]; without an upper end: [1.90, ...]."""
    if low is None or high == 0:
        return ratio(value)
    end = "..." if high is None else ratio(high).removesuffix("x")
    return f"{ratio(value)} [{ratio(low).removesuffix('x')}, {end}]"


UNITS = (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def amount(value: float | None) -> str:
    """Format a large number with three digits: 1.23M."""
    if value is None or value != value:
        return DASH
    for unit, size in UNITS:
        # From 999,500 on, three digits round up to the next unit.
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:z.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with that many significant digits."""
    if value is None or value != value:
        return DASH
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:z#.{digits}g}".removesuffix(".")


def fixed(value: float | None, digits: int) -> str:
    """Format a number with that many decimals."""
    return DASH if value is None or value != value else f"{value:z.{digits}f}"


def with_interval(value: Interval, scale: float = 1.0, unit: str = "", digits: int = 3) -> str:
    """Format a mean and half its 95% interval: 0.482 ± 0.013."""
    mean = f"{number(scale * value.mean, digits)}{unit}"
    return mean if value.low is None else f"{mean} ± {number(scale * value.half, 2)}{unit}"


def learning_rate(value: float) -> str:
    """Format a learning rate: 1e-5."""
    return f"{value:.0e}".replace("e-0", "e-")


def duration(seconds: float | None) -> str:
    """Format a time span in the two largest units that matter."""
    if seconds is None or seconds != seconds:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
