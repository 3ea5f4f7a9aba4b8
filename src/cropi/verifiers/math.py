"""`math`: mathematical equality of the final answers, by Hugging Face's math-verify.

math-verify's own timeouts look like wrong answers and work in main threads only. They are off
here: the worker's deadline tells a timeout from a wrong answer.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import Any

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.answers import last_boxed

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\fbox|\\begin\{(?:equation|align)")
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "max", "min", "mod"}
_FUNCTIONS |= {"arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "lim", "gcd", "lcm", "inf"}


@plugin("verifier", "math")
class MathVerifier:
    """Compares the response's last mathematical expression with the answer's."""

    def __init__(self) -> None:
        # math-verify warns that its timeouts are off, which is intended here.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        # The first parse compiles grammars; that must not count towards a response's deadline.
        _parsed("\\boxed{\\frac{1}{2}}")

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return 1.0 if the response's answer equals the prompt's, else 0.0.

        Raises ValueError if the prompt's answer cannot be read.
        """
        gold = _stated(prompt.answer)
        words = _only_words(gold)
        if words is not None:
            return float(words == _only_words(_stated(completion, words=True)))
        expected = _parsed(_marked(gold))
        if all(isinstance(reading, str) for reading in expected):
            raise ValueError(f"math-verify cannot read the answer {prompt.answer!r}")
        return float(_equal(expected, _parsed(_marked(_stated(completion)))))


def _stated(text: str, words: bool = False) -> str:
    """Return the final statement: the text after GSM8K's `####` in the last line, or all of it.

    With `words`, only the part that can hold an answer in words: the box, or the last line.
    """
    lines = text.strip().splitlines() or [""]
    if "####" in lines[-1]:
        return lines[-1].rpartition("####")[2].strip()
    if not words:
        return text.strip()
    boxed = last_boxed(text)
    line = boxed if boxed is not None else lines[-1]
    return re.sub(r"(?i)^.*\banswer(?: is)?\b\s*:?", "", line).strip()


def _only_words(text: str) -> str | None:
    """Return the case-folded words of an answer that is prose without numbers, else None.

    math-verify would read `Paris` as a product of five symbols, equal to any of its anagrams.
    """
    plain = _COMMAND.sub(lambda m: m.group(1) or " @ ", last_boxed(text) or text).strip("$ .")
    if re.search(r"[\d@^=+*/<>\\(){}\[\]]", plain):
        return None
    words = _WORD.findall(plain)
    if not words or all(w.lower() in _FUNCTIONS for w in words):
        return None
    return " ".join(plain.casefold().split())


def _marked(text: str) -> str:
    """Wrap a bare formula in a box, because math-verify reads LaTeX only inside delimiters.

    Prose is returned unchanged: in prose the last number or the phrase "answer is" decides.
    """
    if _DELIMITED.search(text) or "\n" in text:
        return text
    words = _WORD.findall(_COMMAND.sub(lambda m: m.group(1) or " ", text))
    prose = any(w.lower() not in _FUNCTIONS for w in words)
    return text if prose else f"\\boxed{{{text}}}"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """Return math-verify's readings of a text, as expressions or strings; empty without any."""
    from math_verify import parse

    return tuple(parse(text, parsing_timeout=None))


def _equal(expected: tuple[Any, ...], stated: tuple[Any, ...]) -> bool:
    """Whether any reading matches; a comparison that fails is an error unless another matches."""
    from math_verify import verify

    failure: Exception | None = None
    for gold, target in product(expected, stated):
        try:
            if verify(gold, target, timeout_seconds=None, raise_on_error=True):
                return True
        except Exception as error:  # noqa: BLE001  (sympy raises anything)
            failure = error
    if failure is not None:
        raise ValueError(f"sympy cannot compare the answers: {failure!r}") from failure
    return False
