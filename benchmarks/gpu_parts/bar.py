"""What is asked of a GPU, and which figure answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORECAST = 103_000
"""Bytes of activations per position and layer that were forecast for 1.5B parameters."""


@dataclass(frozen=True)
class Asked:
    """A bar for one figure: `part`, then the keys that lead to its number."""

    part: str
    keys: tuple[str, ...]
    sense: str
    bar: float

    @property
    def name(self) -> str:
        """Its name in the record."""
        return ".".join((self.part, *self.keys))

    def value(self, parts: Mapping[str, Any]) -> float | None:
        """The number, None where it was not measured."""
        values: Any = parts.get(self.part, {}).get("figures", {})
        for key in self.keys:
            values = values.get(key) if isinstance(values, Mapping) else None
        return None if values is None else float(values)

    def met(self, value: float) -> bool:
        """Whether the bar is reached."""
        return value <= self.bar if self.sense == "<=" else value >= self.bar


ASKED = (
    Asked("parity", ("float32", "largest_cosine_error"), "<=", 1e-4),
    Asked("hashing", ("share_of_bandwidth",), ">=", 0.5),
    Asked("qwen", ("tokens_per_second", "exact"), ">=", 25_000),
    Asked("qwen", ("over_floor", "exact"), "<=", 1.2),
    Asked("qwen", ("over_floor", "exact_shared"), "<=", 0.75),
    Asked("memory", ("exact", "excess_over_largest_layer"), "<=", 1.0),
    Asked("memory", ("exact", "bytes_per_position_and_layer"), "<=", FORECAST),
)


def verdicts(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that is asked: the number, the bar, and whether it is met (None: not measured)."""
    by_name = {}
    for asked in ASKED:
        value = asked.value(parts)
        met = None if value is None else asked.met(value)
        by_name[asked.name] = {"value": value, "asked": f"{asked.sense} {asked.bar:g}", "met": met}
    return by_name
