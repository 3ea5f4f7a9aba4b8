"""Values of rows as JSON holds them: from numpy, Arrow, dates and decimals, or a reason why not."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cropi.text import DEEPEST, shown

NESTED_COLUMNS = ("tools", "reward_model", "extra_info")
"""Columns that hold objects, or lists of them, which many tables store as JSON text."""
MOST_BITS = 4_096
"""Bits of an integer; Python refuses to print much longer ones."""


def parsed_json(value: Any) -> Any:
    """The object, or list of objects, that a text is the JSON of; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "{")):
        return value
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return inner if inner else value


def json_value(value: Any, depth: int = 0) -> Any:
    """Return `value` with numpy, Arrow and date types replaced by what JSON can hold.

    NaN becomes None, because dataframes write a missing cell as NaN. Raises TypeError on a value
    that JSON cannot hold, such as bytes or an image, and ValueError on text with a lone surrogate,
    huge integers, and values nested too deep.
    """
    if isinstance(value, str):
        return require_writable_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ValueError(shown(value))
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if depth > DEEPEST:
        raise ValueError(f"values nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {require_writable_text(str(k)): json_value(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(v, depth + 1) for v in value]
    return _convert(value, depth)


def require_writable_text(text: str) -> str:
    """Return the text. Raises ValueError if it has a lone surrogate, which UTF-8 cannot write."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text with a lone surrogate (half of a character in UTF-16)")
    return text


def _convert(value: Any, depth: int) -> Any:
    if isinstance(value, np.ndarray):
        return json_value(value.tolist(), depth + 1)
    if isinstance(value, np.generic):
        return json_value(value.item(), depth + 1)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise TypeError("a value of type bytes (an image, a sound or other binary data)")
    raise TypeError(f"a value of type {type(value).__name__}")


def as_text(value: Any) -> str:
    """Return a JSON value as the text of an answer; lists and objects become JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
