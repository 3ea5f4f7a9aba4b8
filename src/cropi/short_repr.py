"""What the results of our functions print as: counts, ranges and names instead of every value.

A pool's influence is arrays of thousands of numbers, and a policy a model of hundreds of layers.
Printed in full, in a notebook or a debugger, they bury what a reader wants to see.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cropi.text import shown

LONGEST_LINE = 100
"""Characters up to which a result is one line; longer ones have a line for each field."""
LONGEST_TEXT = 80
"""Characters of a text in a field; what properties say is cut at LONGEST_SENTENCE."""
LONGEST_SENTENCE = 400
FIRST = 3
"""Members of a list that are shown, before how many there are."""
MOST_NUMBERS = 8
"""Numbers of an array up to which all are shown; above, only between which they are."""
MOST_ENTRIES = 8
"""Entries of a mapping that are shown."""
MOST_KINDS = 6
"""Different texts in a list up to which each is counted; above, the first ones are shown."""


class ShortRepr:
    """Of a dataclass (with `repr=False`), or of settings: a repr that fits on a screen.

    Values that are the defaults are left out, and so is what an object does not have yet, as where
    its own checks refuse it. `also_shown` names properties that say more than the fields do.
    """

    __slots__ = ()
    also_shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        properties = {name: getattr(self, name, MISSING) for name in self.also_shown}
        there = {name: value for name, value in properties.items() if value is not MISSING}
        return _call(self, self.values_shown(), there)

    def __str__(self) -> str:
        return repr(self)

    def values_shown(self) -> dict[str, Any]:
        """The values that are not the defaults, by the names of their fields."""
        return _changed_fields(self)


def _call(instance: Any, values: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    parts = [f"{name}={_short(value)}" for name, value in values.items()]
    parts += [f"{name}={_short(value, LONGEST_SENTENCE)}" for name, value in properties.items()]
    return _joined(f"{type(instance).__name__}(", parts, ")")


def _changed_fields(instance: Any) -> dict[str, Any]:
    shown_fields = [f for f in fields(instance) if f.repr and hasattr(instance, f.name)]
    values = {f.name: (getattr(instance, f.name), _default(f)) for f in shown_fields}
    return {name: value for name, (value, default) in values.items() if not _equal(value, default)}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _equal(value: Any, default: Any) -> bool:
    """Whether a field has its default; arrays never do, because they compare by element."""
    if value is default:
        return True
    plain = not hasattr(value, "shape") and not hasattr(default, "shape")
    return plain and type(value) is type(default) and bool(value == default)


def _short(value: Any, longest: int = LONGEST_TEXT) -> str:
    if isinstance(value, ShortRepr):
        return repr(value)
    if isinstance(value, np.ndarray):
        return _array(value)
    if hasattr(value, "shape") and hasattr(value, "device"):  # a tensor; torch is not loaded here
        return f"{_dtype(value)} {list(value.shape)} on {value.device}"
    if isinstance(value, np.generic):
        return _short(value.item())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        return _list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _call(value, _changed_fields(value), {})
    if callable(getattr(value, "named_parameters", None)):
        return _model(value)
    if hasattr(value, "convert_tokens_to_ids"):
        return f"{type(value).__name__} of {len(value):,} tokens"
    return shown(value, longest)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _array(values: NDArray[Any]) -> str:
    """Type and shape, and between which numbers its values are."""
    text = f"{_dtype(values)} {list(values.shape)}"
    if values.dtype.kind not in "biuf":
        return text
    if not values.size and max(values.shape) > MOST_NUMBERS:
        return text  # its numbers would be as many empty lists
    if values.size <= MOST_NUMBERS:
        return f"{_dtype(values)} {_numbers(values.tolist())}"
    if values.dtype.kind == "b":
        return f"{text}, {int(values.sum()):,} true"
    missing = np.isnan(values)
    if missing.all():
        return f"{text}, all NaN"
    least, greatest = np.nanmin(values), np.nanmax(values)
    text += f", {least:.4g} to {greatest:.4g}" if least < greatest else f", all {least:.4g}"
    return f"{text}, {int(missing.sum()):,} NaN" if missing.any() else text


def _numbers(values: Any) -> str:
    """Numbers, and lists of them, as Python writes them but for float's last digits."""
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return _short(values)


def _mapping(values: Mapping[Any, Any]) -> str:
    first = list(values.items())[:MOST_ENTRIES]
    parts = [f"{shown(key, LONGEST_TEXT)}: {_entry(value)}" for key, value in first]
    if len(values) > MOST_ENTRIES:
        parts.append(f"... {len(values):,} in all")
    return _joined("{", parts, "}")


def _entry(value: Any) -> str:
    """A value of a mapping; of a large result only what it is."""
    text = _short(value)
    return f"{type(value).__name__}(...)" if is_dataclass(value) and "\n" in text else text


def _list(values: Sequence[Any]) -> str:
    """The first members and how many there are; only what they are, where they are large."""
    if not values:
        return shown(values)
    if len(values) > 1 and (kind := _large(values[0])):
        return f"[{len(values):,} x {kind}]"
    if len(values) > MOST_KINDS and all(isinstance(value, str) for value in values):
        counts = Counter(values)
        if len(counts) <= MOST_KINDS:
            parts = [f"{count:,} x {shown(value, LONGEST_TEXT)}" for value, count in counts.items()]
            return _joined("[", parts, "]")
    parts = [_member(value) for value in values[:FIRST]]
    if len(values) > FIRST:
        parts.append(f"... {len(values):,} in all")
    if isinstance(values, tuple):
        return _joined("(", parts, ",)" if len(values) == 1 else ")")
    return _joined("[", parts, "]")


def _member(value: Any) -> str:
    """A member of a list; a mapping takes one line."""
    return shown(value, LONGEST_TEXT) if isinstance(value, Mapping) else _short(value)


def _large(value: Any) -> str:
    """The type of a value that is too large to be shown in a list; empty for others."""
    if isinstance(value, np.ndarray):
        return f"{_dtype(value)} array"
    return type(value).__name__ if is_dataclass(value) else ""


def _model(model: Any) -> str:
    parameters = [parameter for _, parameter in model.named_parameters()]
    text = f"{type(model).__name__} of {sum(p.numel() for p in parameters):,} parameters"
    if parameters:
        text += f", {_dtype(parameters[0])} on {parameters[0].device}"
    return text


def _joined(start: str, parts: Sequence[str], end: str) -> str:
    """The parts on one line, or on one each where that would be too long."""
    line = start + ", ".join(parts) + end
    if len(line) <= LONGEST_LINE and "\n" not in line:
        return line
    return start + "\n" + "".join(textwrap.indent(f"{part},\n", "  ") for part in parts) + end
