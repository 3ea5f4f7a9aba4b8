"""Cell values as JSON holds them, whatever library a row came from."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return `value` with numpy, Arrow and date types replaced by what JSON can hold.

    NaN becomes None, for that is how dataframes write a missing cell. Raises TypeError on a value
    that JSON cannot hold, such as bytes or an image.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return _foreign(value)


def _foreign(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def as_text(value: Any) -> str:
    """Return a plain value as the text of an answer; lists and objects become JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
