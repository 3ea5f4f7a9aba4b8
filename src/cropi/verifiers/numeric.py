"""`numeric`: the last number of the response equals the answer's, within rounding.

Reads 1,234.5, 1/2, \\frac{1}{2}, 50%, 1e-3 and -4; a \\boxed{} number wins over later ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.answers import last_boxed

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
# A minus right after a digit, letter or bracket subtracts; anywhere else it is the sign.
_SIGN = r"(?:(?<![\w)\]}])[-+]\s?\$?)?"
_NUMBER = re.compile(rf"({_SIGN}{_PLAIN})(?:\s*/\s*({_PLAIN}))?(\s*\\?%)?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    percent: bool

    def equals(self, other: _Number) -> bool:
        """Whether both mean the same; a percent sign on one side alone may be ignored."""
        if self.percent == other.percent:
            return _close(self.value, other.value)
        percent, bare = (self, other) if self.percent else (other, self)
        return _close(percent.value, bare.value) or _close(percent.value / 100, bare.value)


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


@plugin("verifier", "numeric")
def verify(prompt: Prompt, completion: str) -> float:
    """Return 1.0 if the response's last number equals the answer's, else 0.0.

    Raises ValueError if the answer has no number.
    """
    gold = _last_number(prompt.answer)
    if gold is None:
        raise ValueError(f"the answer {prompt.answer!r} has no number")
    number = _last_number(completion)
    return float(number is not None and gold.equals(number))


def _last_number(text: str) -> _Number | None:
    boxed = last_boxed(text)
    if boxed is not None and (number := _last_number(boxed)) is not None:
        return number
    text = _FRACTION.sub(r" \1/\2 ", text.replace("\u2212", "-"))
    for match in reversed(list(_NUMBER.finditer(text))):
        numerator, denominator, percent = match.groups()
        divisor = _as_float(denominator) if denominator else 1.0
        if divisor:
            return _Number(_as_float(numerator) / divisor, percent is not None)
    return None


def _as_float(text: str) -> float:
    return float(re.sub(r"[,$\s]", "", text))
